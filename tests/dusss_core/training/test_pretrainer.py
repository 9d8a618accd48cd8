"""Step 1 repeats exactly, whatever is trained along, and knows equal words when it sees them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dusss_core.files import digest_of_tensors
from dusss_core.phases import Phase
from dusss_core.text.bank import build_text_bank
from dusss_core.training import Pretrainer, initial_shared
from tests.dusss_core.conftest import SENTENCES, make_config, make_split


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_equal_rounds_are_equal_where_the_text_encoder_is_trained_along(tiny_bert, tuning):
    text = {"encoder": str(tiny_bert), "tuning": tuning, "lora_rank": 2, "views": 1}
    vlm = {"image_encoder": "test_resnet", "dim": 16, "decoder_width": 16, "patch_stride": 8, "text": text}
    config, train = make_config(vlm=vlm), make_split()
    start, digests = initial_shared(config, Phase.PRETRAIN), []
    for _ in range(2):
        torch.rand(5)  # whoever draws from torch's global generator meanwhile changes nothing
        trainer = Pretrainer(config, "a", train, train, None)
        trainer.load_shared(start)
        trainer.train_round(1)
        digests.append(digest_of_tensors(trainer.shared()))
    assert digests[0] == digests[1] != digest_of_tensors(start)


def test_training_leaves_the_global_generator_as_it_was(bank):
    config, train = make_config(), make_split()
    trainer = Pretrainer(config, "a", train, train, bank)
    trainer.load_shared(initial_shared(config, Phase.PRETRAIN))
    torch.manual_seed(11)
    before = torch.get_rng_state()
    trainer.train_round(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mirrored_sentence_is_the_same_as_the_one_whose_words_it_has():
    config, train = make_config(), make_split()
    bank = build_text_bank(SENTENCES, config.vlm.text)
    left, right = torch.tensor([0]), torch.tensor([1])
    mirrored = torch.tensor([True])
    assert bank.identity(left, mirrored).equal(bank.identity(right))
    assert not bank.identity(left).equal(bank.identity(right))
    assert not bank.identity(left).equal(bank.identity(left, mirrored))
    trainer = Pretrainer(config, "a", train, train, bank)
    trainer.load_shared(initial_shared(config, Phase.PRETRAIN))
    positions = np.arange(12)
    seen = trainer._look((positions[:4], positions[4:]), torch.Generator().manual_seed(1))
    # what the sentence says of the picture as it is shown: the tokens decide, and half of the pictures are mirrored
    same_words = (seen.text.semantic[:, None] - seen.text.semantic[None]).abs().amax(dim=-1) < 1e-6
    assert torch.equal(seen.identity[:, None] == seen.identity[None], same_words)
    assert len(set(seen.identity.tolist())) == 2


def test_a_picture_is_not_mirrored_where_its_sentence_cannot_be(bank):
    config, train = make_config(), make_split()
    bank.may_flip = lambda indices: torch.zeros(len(indices), dtype=torch.bool)
    trainer = Pretrainer(config, "a", train, train, bank)
    trainer.load_shared(initial_shared(config, Phase.PRETRAIN))
    positions = np.arange(12)
    for seed in range(3):  # half of the pictures would be
        seen = trainer._look((positions[:4], positions[4:]), torch.Generator().manual_seed(seed))
        assert seen.identity.tolist() == train.sentence.tolist()


def test_a_picture_is_told_from_all_sentences_of_the_site_each_as_often_as_records_have_it(bank):
    told = {"method": {"negatives": "site"}, "pretrain": {"batch": 4, "flip": False}}
    config, train = make_config(**told), make_split(n=12, with_text=9)
    trainer = Pretrainer(config, "a", train, train, bank)
    assert trainer.wordings.identity.tolist() == [0, 1]
    assert trainer.wordings.log_count.exp().tolist() == pytest.approx([5, 4])
    seen = trainer._look((np.array([0]), np.array([2])), torch.Generator().manual_seed(0))
    # both pictures of the batch say left: only the site's other sentence can tell anything
    assert seen.identity.tolist() == [0, 0] and seen.sentences.identity.tolist() == [0, 1]
    trainer.vlm.log_scale.data.fill_(-30)  # all similarities count alike
    loss = trainer.method.contrasts(seen)["cmc"]
    own_share, other_pictures = np.log(9 / 5), np.log(2)
    assert loss.item() == pytest.approx((own_share + other_pictures) / 2, abs=1e-5)


def test_mirrored_pictures_make_both_sentences_half_as_often(bank):
    config, train = make_config(method={"negatives": "site"}), make_split(n=9)  # five say left, four right
    wordings = Pretrainer(config, "a", train, train, bank).wordings
    assert wordings.log_count.exp().tolist() == pytest.approx([4.5, 4.5])


@pytest.mark.parametrize("method", [{"negatives": "batch"}, {"negatives": "site", "pairs": "identity"}])
def test_the_batch_alone_is_told_apart_where_the_study_says_so(bank, method):
    assert Pretrainer(make_config(method=method), "a", make_split(), make_split(), bank).wordings is None


@pytest.mark.parametrize("negatives", ["site", "batch"])
def test_a_site_whose_sentences_are_all_equal_trains(bank, negatives):
    settings = {"method": {"negatives": negatives}, "pretrain": {"rounds": 1, "batch": 6, "flip": False}}
    config, train = make_config(**settings), make_split(n=12)
    train.sentence[:] = 0
    trainer = Pretrainer(config, "a", train, train, bank)
    start = initial_shared(config, Phase.PRETRAIN)
    trainer.load_shared(start)
    figures = trainer.train_round(1)
    assert np.isfinite(list(figures.values())).all()
    assert digest_of_tensors(trainer.shared()) != digest_of_tensors(start)


def several(split):
    """The split with a second sentence at every even record."""
    n = len(split)
    more = np.where(np.arange(n) % 2 == 0, 1 - split.sentence, -1)[:, None]
    return replace(split, more=more)


def test_of_several_sentences_training_draws_each_one_at_a_time(bank):
    config, train = make_config(), several(make_split())
    trainer = Pretrainer(config, "a", train, train, bank)
    drawn = []
    for trainer.step in range(200):
        drawn.append(trainer._sentence_of(np.arange(12)))
    drawn = np.array(drawn)
    even, odd = drawn[:, 0::2], drawn[:, 1::2]
    assert (odd == train.sentence[1::2]).all()
    assert (abs(even.mean(axis=0) - 0.5) < 0.15).all()
    # not all records in step with each other
    assert 0 < np.corrcoef(even[:, 0], even[:, 1])[0, 1] ** 2 < 0.1


def test_one_sentence_each_trains_as_it_ever_did(bank):
    config, digests = make_config(), []
    for train in (make_split(), replace(make_split(), more=np.full((12, 2), -1))):
        trainer = Pretrainer(config, "a", train, train, bank)
        trainer.load_shared(initial_shared(config, Phase.PRETRAIN))
        trainer.train_round(1)
        digests.append(digest_of_tensors(trainer.shared()))
    assert digests[0] == digests[1]


def test_a_second_sentence_changes_what_is_learnt(bank):
    config, digests = make_config(), []
    for train in (make_split(), several(make_split())):
        trainer = Pretrainer(config, "a", train, train, bank)
        trainer.load_shared(initial_shared(config, Phase.PRETRAIN))
        trainer.train_round(1)
        digests.append(digest_of_tensors(trainer.shared()))
    assert digests[0] != digests[1]


def test_records_with_several_sentences_count_once_among_the_negatives(bank):
    config = make_config(method={"negatives": "site"})
    trainer = Pretrainer(config, "a", several(make_split()), make_split(), bank)
    assert float(trainer.wordings.log_count.exp().sum()) == pytest.approx(12)
    sentence, count = trainer._shares()
    # six odd records have sentence 1, six even ones half of each
    assert dict(zip(sentence.tolist(), count.tolist(), strict=True)) == {0: 3.0, 1: 9.0}
