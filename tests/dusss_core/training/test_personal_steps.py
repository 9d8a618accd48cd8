"""The steps of a site's own student, by hand: Ditto's gradient, APFL's mixture and alpha, FedRep's two parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dusss_core.training import (
    student_after,
)
from tests.dusss_core.objectives.sites import config_of, pictures
from tests.dusss_core.training.test_personal import ALPHA, LAMBDA, personal_site, with_personal


class Line(nn.Module):
    """One weight: a student that can be followed by hand."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))


def by_hand(kind: str, loss, **personal):
    """A Ditto or APFL student beside w, each of one weight, whose loss is `loss(weight)`, that makes a step of plain
    gradient descent; AdamW, clipping and pictures are left out."""
    optimizer = {"lr": 0.1, "warmup": 0, "min_lr_ratio": 1, "clip_norm": None}
    config = with_personal(config_of("supervised", optimizer=optimizer), kind=kind, **personal)
    trainer = personal_site(config, pictures())
    own = trainer.own
    trainer.model, own.model, own.student = Line(2.0), Line(5.0), None
    own.losses = lambda batch, draw, share: (loss(own.model.weight).sum(), {})
    return trainer, own


def test_dittos_gradient_by_hand():
    """F(v) = v^2, v = 5, w = 2, lambda = 0.5: 2 * 5 + 0.5 * (5 - 2) = 11.5."""
    _, own = by_hand("ditto", lambda v: v**2, weight=LAMBDA)
    own.optimizer.param_groups[0]["params"] = list(own.model.parameters())
    own.__dict__.pop("_trained", None)
    own.set_gradients(None, None, 0.5, own.anchor())
    assert own.model.weight.grad.item() == pytest.approx(11.5)


@pytest.mark.parametrize("learnt", [False, True])
def test_apfls_step_by_hand(learnt):
    """F(m) = m^2, v = 5, w = 2, alpha = 0.3: m = 2.9, grad F = 5.8, grad_v = 0.3 * 5.8 = 1.74; the gradient of alpha is
    (5 - 2) * 5.8 = 17.4, so alpha becomes 0.3 - 0.01 * 17.4 = 0.126."""
    _, own = by_hand("apfl", lambda m: m**2, alpha=ALPHA, learn_alpha=learnt, alpha_lr=0.01)
    own.v = {"weight": torch.tensor([5.0], requires_grad=True)}
    own.set_gradients(None, None, 0.5, [])
    assert own.model.weight.item() == pytest.approx(2.9)
    assert own.v["weight"].grad.item() == pytest.approx(1.74)
    assert own.alpha.item() == pytest.approx(0.126 if learnt else 0.3)


def test_alpha_stays_between_0_and_1():
    for slope, end in ((1e4, 0.0), (-1e4, 1.0)):
        _, own = by_hand("apfl", lambda m, slope=slope: slope * m, alpha=ALPHA, learn_alpha=True)
        own.v = {"weight": torch.tensor([5.0], requires_grad=True)}
        own.set_gradients(None, None, 0.5, [])
        assert own.alpha.item() == end


def test_fedrep_trains_the_head_first_and_then_the_rest():
    """In the first 0.2 of a round's steps the head alone moves, in the others all but the head."""
    config = with_personal(config_of("supervised", batch=2, rounds=1, epochs=2), kind="fedrep", head_share=0.2)
    trainer = personal_site(config, pictures())
    steps, seen = trainer.steps_per_round, []
    last = {key: value.clone() for key, value in trainer.model.named_parameters()}
    for _ in trainer.stepwise(1):
        moved = {key for key, value in trainer.model.named_parameters() if not torch.equal(value, last[key])}
        seen.append({key.split(".")[0] for key in moved})
        last = {key: value.clone() for key, value in trainer.model.named_parameters()}
    heads = round(0.2 * steps)
    assert 0 < heads < steps
    assert all(parts == {"head"} for parts in seen[:heads])
    assert all("head" not in parts and {"stem", "up"} <= parts for parts in seen[heads:])


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_in_a_round_of_two_steps_head_and_body_have_one_each(share):
    trainer = personal_site(with_personal(config_of("supervised"), kind="fedrep", head_share=share), pictures())
    before = {key: value.clone() for key, value in trainer.model.named_parameters()}
    assert trainer.steps_per_round == 2
    trainer.train_round(1)
    moved = {
        key.split(".")[0] for key, value in trainer.model.named_parameters() if not torch.equal(value, before[key])
    }
    assert moved >= {"head", "stem", "up"}


def test_apfls_mixture_by_hand():
    config = with_personal(config_of("supervised"), kind="apfl")
    private = {
        "personal.student.a": torch.tensor([1.0, 3.0]),
        "personal.student.n": torch.tensor(7),
        "personal.alpha": torch.tensor(0.25),
    }
    made = student_after(config, private, {"a": torch.tensor([5.0, 3.0]), "n": torch.tensor(2)}, pictures())
    assert made["a"].tolist() == [4.0, 3.0] and made["n"].item() == 7
