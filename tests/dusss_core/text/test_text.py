"""The bank of a frozen encoder gives what the encoder gives; a cache hit needs no transformers."""

import subprocess
import sys

import pytest
import torch

from dusss_core.config import TextConfig
from dusss_core.text.bank import TextBank, TrainableTextBank, build_text_bank
from dusss_core.text.encoder import TextEncoder
from dusss_core.text.wording import mirror, wordings

SENTENCES = (
    "bilateral pulmonary infection, two infected areas, lower left lung and upper right lung.",
    "no finding",
    "unilateral pulmonary infection, one infected area, upper left lung.",
)
CONFIG = TextConfig(views=2, standardise=False)


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder(CONFIG)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def bank(encoder, cache):
    return build_text_bank(SENTENCES, CONFIG, cache, encoder=encoder)


def _direct(encoder, sentence):
    ids, mask = encoder.tokenize([sentence])
    return encoder(ids, mask)[0][mask[0]]


def _assert_is(tokens, mask, expected):
    assert int(mask.sum()) == len(expected)
    torch.testing.assert_close(tokens[mask], expected, atol=2e-3, rtol=2e-3)


def test_features_are_those_of_the_sentence(bank, encoder):
    tokens, mask = bank.features(torch.tensor([2, 0, 0]))
    assert tokens.shape == (3, bank.n_tokens, bank.embedding_width) == (3, 24, 384)
    assert tokens.dtype == torch.float32 and mask.dtype == torch.bool
    for row, sentence in enumerate((SENTENCES[2], SENTENCES[0], SENTENCES[0])):
        _assert_is(tokens[row], mask[row], _direct(encoder, sentence))


def test_mirrored_features_are_those_of_the_mirrored_sentence(bank, encoder):
    tokens, mask = bank.features(torch.tensor([0, 0]), mirrored=torch.tensor([True, False]))
    _assert_is(tokens[0], mask[0], _direct(encoder, mirror(SENTENCES[0])))
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-2)


def test_views_are_the_other_wordings_mirrored_or_not(bank, encoder):
    view = wordings(SENTENCES[0], 2)[1]
    tokens, mask = bank.features(torch.tensor([0, 0]), view=torch.tensor([2, 2]), mirrored=torch.tensor([False, True]))
    _assert_is(tokens[0], mask[0], _direct(encoder, view))
    _assert_is(tokens[1], mask[1], _direct(encoder, mirror(view)))


def test_a_record_without_text_reads_zeros_and_attention_stays_finite(bank):
    tokens, mask = bank.features(torch.tensor([-1, 1]), mirrored=torch.tensor([True, True]), view=torch.ones(2).long())
    assert not tokens[0].any()
    assert mask[0].tolist() == [True] + [False] * (bank.n_tokens - 1)
    weights = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf).softmax(1)
    assert weights.isfinite().all()
    assert bank.may_flip(torch.tensor([-1])).all() and bank.may_turn(torch.tensor([-1])).all()


def test_the_bank_knows_which_pictures_may_be_moved(bank):
    assert bank.may_flip(torch.tensor([0, 1, 2])).tolist() == [True, True, True]
    assert bank.may_turn(torch.tensor([0, 1, 2])).tolist() == [False, True, False]


def test_no_sentences_at_all(tmp_path):
    bank = build_text_bank((), CONFIG, tmp_path)
    tokens, mask = bank.features(torch.tensor([-1, -1]))
    assert tokens.shape[0] == 2 and tokens.shape[2] == bank.embedding_width == 384
    assert not tokens.any() and mask[:, 0].all()


def test_without_augmentation_only_the_sentences_and_their_mirror_images_are_held(encoder, bank):
    plain = build_text_bank(SENTENCES, CONFIG, encoder=encoder, augmented=False)
    assert plain.n_views == 0
    torch.testing.assert_close(
        plain.features(torch.tensor([0]))[0], bank.features(torch.tensor([0]))[0], atol=2e-3, rtol=2e-3
    )
    with pytest.raises(IndexError):
        plain.features(torch.tensor([0]), view=torch.tensor([1]))


def test_a_cached_bank_is_the_same_and_imports_no_transformers(bank, cache):
    code = f"""
import socket, sys
def refuse(*a, **k): raise RuntimeError("network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from pathlib import Path
from dusss_core.config import TextConfig
from dusss_core.text.bank import build_text_bank
bank = build_text_bank({SENTENCES!r}, TextConfig(views=2, standardise=False), Path({str(cache)!r}))
assert "transformers" not in sys.modules and "huggingface_hub" not in sys.modules
print(float(bank.features(torch.tensor([0, 2]))[0].double().sum()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) == float(bank.features(torch.tensor([0, 2]))[0].double().sum())


def test_known_wordings_are_not_encoded_again(bank, cache, encoder, monkeypatch):
    seen = []
    tokenize = encoder.tokenize
    monkeypatch.setattr(encoder, "tokenize", lambda texts: seen.extend(texts) or tokenize(texts))
    more = build_text_bank(("a new sentence", *SENTENCES), CONFIG, cache, encoder=encoder)
    assert seen and not set(seen) & set(SENTENCES)
    assert torch.equal(more.features(torch.tensor([1]))[0], bank.features(torch.tensor([0]))[0])
    _assert_is(*(part[0] for part in more.features(torch.tensor([0]))), _direct(encoder, "a new sentence"))


def test_the_cache_holds_no_words_and_a_damaged_one_is_made_anew(bank, cache, encoder, tmp_path):
    (file,) = cache.glob("*.safetensors")
    content = file.read_bytes()
    assert b"infection" not in content and b"lung" not in content
    (tmp_path / file.name).write_bytes(content[: len(content) // 2])
    again = build_text_bank(SENTENCES, CONFIG, tmp_path, encoder=encoder)
    assert torch.equal(again.features(torch.tensor([0]))[0], bank.features(torch.tensor([0]))[0])


def test_a_trained_encoder_gets_gradients_through_the_same_call(bank):
    config = TextConfig(views=2, tuning="lora", lora_rank=2)
    encoder = TextEncoder(config).eval()
    trainable = build_text_bank(SENTENCES, config, encoder=encoder)
    assert isinstance(trainable, TrainableTextBank) and isinstance(bank, TextBank)
    where = {"mirrored": torch.tensor([True, False, False]), "view": torch.tensor([1, 0, 0])}
    tokens, mask = trainable.features(torch.tensor([0, -1, 0]), **where)
    expected, expected_mask = bank.features(torch.tensor([0, -1, 0]), **where)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(tokens * mask[..., None], expected, atol=2e-3, rtol=2e-3)
    tokens.square().sum().backward()
    trained = {name for name, value in encoder.named_parameters() if value.grad is not None}
    assert trained and all("lora_" in name for name in trained)
    with pytest.raises(ValueError, match="encoder"):
        build_text_bank(SENTENCES, config)
