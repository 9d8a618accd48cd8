"""What teaches a model and what does not: true masks, moved pictures with what belongs to them, gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dusss_core.augment import Geometry
from dusss_core.files import digest_of_tensors
from dusss_core.phases import Phase
from dusss_core.training import Pretrainer, Segmenter, initial_shared, text_guided_masks
from tests.dusss_core.conftest import make_config, make_split


def pretrainer(config, train, bank):
    trainer = Pretrainer(config, "a", train, make_split(), bank)
    trainer.load_shared(initial_shared(config, Phase.PRETRAIN))
    return trainer


def segmenter(config, train, text_logits=None):
    trainer = Segmenter(config, "a", train, make_split(), text_logits=text_logits)
    trainer.load_shared(initial_shared(config, Phase.SEGMENT))
    return trainer


def loss_of_a_batch(trainer):
    """The loss of the trainer's first batch, and its figures."""
    draw = torch.Generator().manual_seed(1)
    (batch,) = trainer.batches(1, draw)
    return trainer.losses(batch, draw, 1.0)


def test_a_mask_that_a_site_does_not_let_be_trained_on_teaches_neither_model(bank):
    config, train = make_config(), make_split()

    def scrambled(rows):
        masks = train.masks.copy()
        masks[rows] = np.random.default_rng(1).integers(0, 2, masks[rows].shape, dtype=np.uint8)
        return replace(train, masks=masks)

    def trained(split):
        step_1 = pretrainer(config, split, bank)
        step_1.train_round(1)
        logits = text_guided_masks(config, step_1.shared(), split, bank)
        step_2 = segmenter(config, split, logits)
        step_2.train_round(1)
        return digest_of_tensors(step_1.shared()), digest_of_tensors(step_2.shared())

    assert train.masked.all() and not train.labelled.all()
    as_it_is = trained(train)
    assert trained(scrambled(~train.labelled)) == as_it_is
    assert not set(trained(scrambled(train.labelled))) & set(as_it_is)


def moved(monkeypatch, **how):
    """Have every picture of a batch moved in one way, and nothing else: flipped, upended, transposed."""

    def draw(batch, generator, *, device="cpu", **_):
        flags = {name: torch.full((batch,), how.get(name, False)) for name in ("flipped", "upended", "transposed")}
        return Geometry(**flags, affine=None)

    monkeypatch.setattr(Geometry, "draw", draw)


MOVES = {
    "flipped": lambda a: a[..., ::-1],
    "upended": lambda a: a[..., ::-1, :],
    "transposed": lambda a: a.swapaxes(-1, -2),
}


@pytest.mark.parametrize("move", MOVES)
def test_masks_and_text_guided_masks_move_with_the_picture(monkeypatch, move):
    config, train = make_config(segment={"turns": True}), make_split()
    logits = np.random.default_rng(2).normal(0, 3, (12, 1, 32, 32)).astype(np.float16)
    moved(monkeypatch, **{move: True})
    during_training, figures = loss_of_a_batch(segmenter(config, train, logits))
    assert {"supervised", "semi_text", "semi_merged"} <= set(figures)
    before = MOVES[move]
    train = replace(train, images=before(train.images), masks=before(train.masks))
    moved(monkeypatch)
    assert loss_of_a_batch(segmenter(config, train, before(logits)))[0].item() == during_training.item()


def test_a_mirrored_picture_is_told_with_the_mirrored_sentence_in_every_view(monkeypatch, bank):
    config, train = make_config(), make_split()
    moved(monkeypatch, flipped=True)
    _, figures = loss_of_a_batch(pretrainer(config, train, bank))
    assert {"cmc", "imc", "ltg", "grounding", "consistency"} <= set(figures)
    mirrored = MOVES["flipped"]
    train = replace(train, images=mirrored(train.images), masks=mirrored(train.masks), sentence=1 - train.sentence)
    moved(monkeypatch)
    assert loss_of_a_batch(pretrainer(config, train, bank))[1] == figures
    # and the side that a sentence names does matter
    train = replace(train, sentence=1 - train.sentence)
    other = loss_of_a_batch(pretrainer(config, train, bank))[1]
    assert all(other[name] != figures[name] for name in ("ltg", "grounding", "consistency"))


def gradients_at_the_masks(bank, **changes):
    """What the loss of a batch asks of the text-guided masks: B x 1 x H x W of the weak view, and of the strong one
    where there is one. Label supervision of the weak view's masks is off."""
    pretrain = make_config().pretrain.model_dump() | {"weight_grounding": 0.0, "rampup": 0.0}
    trainer = pretrainer(make_config(pretrain=pretrain, **changes), make_split(), bank)
    masks = []

    def keep(module, inputs, grounding):
        grounding.logits.retain_grad()
        masks.append(grounding.logits)

    trainer.model.grounding.register_forward_hook(keep)
    loss_of_a_batch(trainer)[0].backward()
    return [torch.zeros_like(mask) if mask.grad is None else mask.grad for mask in masks]


def test_the_mask_of_the_weak_view_teaches_that_of_the_strong_one_and_not_the_other_way(bank):
    weak, strong = gradients_at_the_masks(bank, method={"ltg": False})
    assert strong.flatten(1).any(1).all()
    assert not weak.any()


def test_the_text_guided_loss_reaches_the_decoder_through_the_mask(bank):
    others = {"grounding_supervision": False, "grounding_consistency": False}
    (mask,) = gradients_at_the_masks(bank, method={"ltg": True, **others})
    assert mask.flatten(1).any(1).all()
    (mask,) = gradients_at_the_masks(bank, method={"ltg": False, **others})
    assert not mask.any()


def test_both_phases_see_what_the_study_says_comes_into_a_view_from_outside(bank):
    def seen(how):
        config = make_config(pretrain={"outside": how, "strong": 0.0}, segment={"outside": how, "strong": 0.0})
        step_1, step_2 = pretrainer(config, make_split(), bank), segmenter(config, make_split())
        return [digest_of_tensors(one.shared()) for one in (step_1, step_2) if one.train_round(1)]

    black, edge = seen("black"), seen("edge")
    assert all(a != b for a, b in zip(black, edge, strict=True))
