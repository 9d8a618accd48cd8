"""The encoder is the original release or is refused; no network is asked; tuning trains what it says."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import dusss_core.text.encoder as text_encoder
from dusss_core.config import TextConfig
from dusss_core.errors import UserError
from dusss_core.text.encoder import TextEncoder, locate


def _changed_copy(folder: Path, change) -> Path:
    settings = json.loads((folder / "config.json").read_text())
    change(settings)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_minilm_is_the_original_release_and_asks_no_network(no_network):
    encoder = TextEncoder(TextConfig())
    ids, mask = encoder.tokenize(["one infected area", "two"])
    features = encoder(ids, mask)
    assert features.shape == (2, 8, 384) and encoder.width == 384
    assert not features.requires_grad and not any(p.requires_grad for p in encoder.parameters())
    assert not encoder.train().training and not encoder.bert.training
    assert encoder.digest == locate("minilm").digest
    assert not no_network


def test_a_tampered_release_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    release = locate("minilm").folder
    (tmp_path / "model").mkdir()
    shutil.copy(release / "config.json", tmp_path / "model")
    content = bytearray((release / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model" / "model.safetensors").write_bytes(content)
    monkeypatch.setattr(text_encoder, "_folder_of", lambda name: tmp_path / "model")
    monkeypatch.setattr(text_encoder, "_load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match="not the original release"):
        locate("minilm")
    with pytest.raises(UserError, match="not the original release"):
        TextEncoder(TextConfig())


def test_remembered_digests_do_not_hide_a_changed_file(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    memory = tmp_path / "memory.json"
    first = locate(str(folder), memory)
    assert memory.is_file() and locate(str(folder), memory) == first == locate(str(folder))
    _changed_copy(folder, lambda settings: settings.update(layer_norm_eps=1e-3))
    assert locate(str(folder), memory).digest == locate(str(folder)).digest != first.digest


@pytest.mark.parametrize(("tuning", "part"), [("frozen", None), ("lora", "lora_"), ("full", "")])
def test_tuning_trains_what_it_says(tiny_bert, tuning, part):
    encoder = TextEncoder(TextConfig(encoder=str(tiny_bert), tuning=tuning, lora_rank=2))
    trained = [name for name, value in encoder.named_parameters() if value.requires_grad]
    assert bool(trained) == (part is not None)
    assert all(part in name for name in trained)
    assert encoder.training == (tuning != "frozen")
    ids, mask = encoder.tokenize(["left lung", "lower left lung and upper right lung"])
    assert encoder(ids, mask).requires_grad == (tuning != "frozen")


def test_padding_changes_no_feature(tiny_bert):
    encoder = TextEncoder(TextConfig(encoder=str(tiny_bert)))
    ids, mask = encoder.tokenize(["left lung"])
    padded = torch.nn.functional.pad(ids, (0, 8)), torch.nn.functional.pad(mask, (0, 8))
    torch.testing.assert_close(encoder(*padded)[:, :4], encoder(ids, mask)[:, :4])


def test_sentences_are_cut_to_max_tokens(tiny_bert):
    encoder = TextEncoder(TextConfig(encoder=str(tiny_bert), max_tokens=16))
    assert encoder.tokenize(["lung " * 50])[0].shape == (1, 16)
    with pytest.raises(UserError, match="takes 64 at most"):
        TextEncoder(TextConfig(encoder=str(tiny_bert), max_tokens=65))


def test_a_bert_under_a_name_of_its_own_is_loaded_without_its_code(tiny_bert, tmp_path, no_network):
    folder = _changed_copy(
        shutil.copytree(tiny_bert, tmp_path / "bert"),
        lambda settings: settings.update(model_type="own-bert", auto_map={"AutoModel": "evil.Model"}),
    )
    (folder / "evil.py").write_text("raise SystemExit('code of the folder ran')")
    theirs, plain = (TextEncoder(TextConfig(encoder=str(path))) for path in (folder, tiny_bert))
    ids, mask = plain.tokenize(["left lung"])
    torch.testing.assert_close(theirs(*theirs.tokenize(["left lung"])), plain(ids, mask))
    assert not no_network


def test_weights_of_another_model_are_refused(tiny_bert, tmp_path):
    folder = _changed_copy(
        shutil.copytree(tiny_bert, tmp_path / "bert"), lambda settings: settings.update(num_hidden_layers=3)
    )
    with pytest.raises(UserError, match="weights"):
        TextEncoder(TextConfig(encoder=str(folder)))


def test_what_a_user_must_mend_is_said(tmp_path, no_network, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(UserError, match="no such folder"):
        locate("/no/such/folder")
    with pytest.raises(UserError, match=r"set vlm.text.encoder to its path"):
        locate("nobody/no-such-bert")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not the config of a text encoder"):
        locate(str(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        locate(str(tmp_path))
    monkeypatch.setattr(text_encoder, "MINILM_PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install"):
        locate("minilm")


def test_the_mask_that_devices_get_hides_the_same_tokens(tiny_bert, monkeypatch):
    encoder = TextEncoder(TextConfig(encoder=str(tiny_bert)))
    ids, mask = encoder.tokenize(["An opacity in both lungs.", "Clear."])
    assert not mask.all()
    by_token = encoder(ids, mask)
    bert = encoder.bert.forward

    def with_pairs(input_ids, attention_mask):
        pairs = mask[:, None, None, :].expand(-1, -1, mask.shape[1], -1)
        return bert(input_ids=input_ids, attention_mask=pairs)

    monkeypatch.setattr(encoder.bert, "forward", with_pairs)
    torch.testing.assert_close(encoder(ids, mask)[mask], by_token[mask])
    assert encoder.bert.config._attn_implementation == "sdpa"
