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


def test_of_very_many_sentences_a_step_encodes_its_own_and_a_drawn_share(bank, monkeypatch):
    """With other sentences in place of the bank's two, and at most six at a time."""
    config, train = make_config(method={"negatives": "site"}, pretrain={"batch": 4, "flip": False}), make_split(n=40)
    train = replace(train, sentence=np.arange(40), sentences=tuple(map(str, range(40))))
    bank.table = torch.randn(40, 6, 384, generator=torch.Generator().manual_seed(0))
    bank.identity = lambda indices, mirrored=None: indices.cpu()
    monkeypatch.setattr("dusss_core.training.pretrain.MOST_SENTENCES", 6)
    trainer = Pretrainer(config, "a", train, train, bank)
    drawn = [
        trainer._look((np.array([0]), np.array([20])), torch.Generator().manual_seed(seed)).sentences for seed in (1, 2)
    ]
    for sentences in drawn:
        assert len(sentences.text.semantic) == 6 and {0, 20} <= set(sentences.identity.tolist())
        # together they stand for all records
        assert sentences.log_count.exp().sum().item() == pytest.approx(40)
    assert not drawn[0].identity.equal(drawn[1].identity)
    assert np.isfinite(list(trainer.train_round(1).values())).all()


@pytest.mark.parametrize("negatives", ["site", "batch"])
def test_a_picture_without_a_sentence_teaches_step_1_nothing(bank, negatives):
    settings = {"method": {"negatives": negatives}, "pretrain": {"rounds": 1, "batch": 6}}
    config, digests = make_config(**settings), []
    start = initial_shared(config, Phase.PRETRAIN)
    for changed in (False, True):
        train = make_split(n=14, with_text=12)
        if changed:
            train.images[12:], train.masks[12:], train.labelled[12:] = 255, 1, True
        trainer = Pretrainer(config, "a", train, train, bank)
        trainer.load_shared(start)
        figures = trainer.train_round(1)
        assert np.isfinite([*figures.values(), *trainer.validate().values()]).all()
        digests.append(digest_of_tensors(trainer.shared()))
    assert digests[0] == digests[1] != digest_of_tensors(start)


PORTUGUESE = ("Infecção no pulmão esquerdo.", "Infecção no pulmão direito.")


def test_pictures_with_sentences_in_a_language_without_word_lists_are_not_mirrored_and_train():
    config = make_config(method={"negatives": "site"}, pretrain={"rounds": 1, "batch": 6})
    train = replace(make_split(n=12), sentences=PORTUGUESE)
    trainer = Pretrainer(config, "a", train, train, build_text_bank(PORTUGUESE, config.vlm.text))
    start = initial_shared(config, Phase.PRETRAIN)
    trainer.load_shared(start)
    positions = np.arange(12)
    seen = trainer._look((positions[:4], positions[4:]), torch.Generator().manual_seed(0))
    assert seen.identity.equal(trainer.text.identity(torch.from_numpy(train.sentence)))
    assert np.isfinite(list(trainer.train_round(1).values())).all()
    assert digest_of_tensors(trainer.shared()) != digest_of_tensors(start)


@pytest.mark.parametrize("negatives", ["site", "batch"])
@pytest.mark.parametrize("cells_read", [None, 0.0, 0.1])
def test_distances_learn_ambiguity_where_the_study_says_so(bank, negatives, cells_read):
    vlm = {**make_config().vlm.model_dump(), "cells": 3, "cells_read": cells_read}
    uncertainty = {"weight_ambiguity": 1.0}
    settings = {"vlm": vlm, "method": {"negatives": negatives}, "pretrain": {"batch": 6, "uncertainty": uncertainty}}
    config, train = make_config(**settings), make_split()
    trainer = Pretrainer(config, "a", train, train, bank)
    start = initial_shared(config, Phase.PRETRAIN)
    trainer.load_shared(start)
    assert np.isfinite(trainer.train_round(1)["ambiguity"])
    moved = trainer.shared()["text.cells.map.mu.bias"] - start["text.cells.map.mu.bias"]
    # weight decay alone moves it by 1e-7
    assert moved.abs().max() > 1e-4


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
