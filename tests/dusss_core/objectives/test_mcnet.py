"""Mutual consistency: sharpened answers and the mutual loss by hand, on both sides, and what a decoder alone is."""

from __future__ import annotations

import functools
from itertools import permutations

import pytest
import torch

from dusss_core.objectives import mcnet
from dusss_core.objectives.mcnet import WEIGHT, MCNet, mutual_loss, sharpened
from tests.dusss_core.gradients import assert_same_as_reference
from tests.dusss_core.objectives.sites import config_of, draw, parts, pictures, site


def logit(p: float) -> torch.Tensor:
    return torch.tensor(p, dtype=torch.float64).logit().view(1, 1, 1, 1)


def naive_sharpened(p, temperature=0.1):
    sure, other = p ** (1 / temperature), (1 - p) ** (1 / temperature)
    return sure / (sure + other)


def test_two_answers_by_hand():
    assert sharpened(logit(0.6)).item() == pytest.approx(0.982954, abs=1e-6)
    assert sharpened(logit(0.7)).item() == pytest.approx(0.999791, abs=1e-6)
    # (0.6 - 0.999791)^2 + (0.7 - 0.982954)^2
    assert mutual_loss([logit(0.6), logit(0.7)]).item() == pytest.approx(0.239896, abs=1e-6)


def test_equal_decoders_agree_when_nothing_is_sharpened(monkeypatch):
    z = torch.randn(2, 3, 4, 4, generator=draw())
    assert mutual_loss([z, z, z]) > 0
    monkeypatch.setattr(mcnet, "sharpened", functools.partial(sharpened, temperature=1.0))
    assert mutual_loss([z, z, z]).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_two_complementary_channels_are_sharpened_as_one(temperature):
    z = 3 * torch.randn(2, 2, 4, 4, generator=draw(), dtype=torch.float64)
    two, one = sharpened(z, temperature), sharpened(z[:, 1:] - z[:, :1], temperature)
    torch.testing.assert_close(two[:, 1:], one)
    torch.testing.assert_close(two.sum(dim=1, keepdim=True), torch.ones_like(one))


@pytest.mark.parametrize("decoders", [2, 3])
@pytest.mark.parametrize("classes", [1, 3])
def test_the_mutual_loss_has_the_gradients_of_a_naive_one_through_both_sides(decoders, classes):
    def naive(*answers):
        p = [z.sigmoid() if classes == 1 else z.exp() / z.exp().sum(dim=1, keepdim=True) for z in answers]
        pairs = permutations(range(len(p)), 2)
        return sum(((p[i] - naive_sharpened(p[j])) ** 2).mean() for i, j in pairs)

    answers = torch.randn(decoders, 2, classes, 3, 2, generator=draw(), dtype=torch.float64)
    assert_same_as_reference(lambda *z: mutual_loss(list(z)), naive, *answers, tolerance=1e-4)


def test_the_answer_that_is_sharpened_gets_a_gradient_too():
    first, second = (torch.randn(1, 1, 2, 2, generator=draw(i)).requires_grad_() for i in (1, 2))
    (first.detach().sigmoid() - sharpened(second)).square().mean().backward()
    assert second.grad.abs().min() > 0


@pytest.mark.parametrize("classes", [1, 3])
def test_sure_answers_have_finite_gradients(classes):
    z = (60 * torch.randn(2, classes, 4, 4, generator=draw())).requires_grad_()
    mutual_loss([z, -z, z.flip(0)]).backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize(("name", "decoders"), [("mcnet_v1", 2), ("mcnet", 3)])
def test_the_loss_is_that_of_all_decoders_and_their_agreement_on_all_pictures(name, decoders):
    trainer = site(config_of(name, norm="group", weight_semi=3), pictures())
    labelled, other, none = parts(trainer)
    assert len(trainer.student.all_logits(torch.zeros(1, 1, 32, 32))) == decoders
    loss, figures = trainer.losses((labelled, other), draw(), 1.0)
    assert loss.item() == pytest.approx(figures["supervised"] + 3 * WEIGHT * figures["mutual"])
    # at the start the ramp is at exp(-5)
    assert trainer.objective.unlabelled_weight(0.0) == pytest.approx(3 * WEIGHT * 0.0067379, rel=1e-4)
    # labelled pictures are to be agreed on too
    assert trainer.losses((labelled, none), draw(), 1.0)[1]["mutual"] > 0


def test_one_decoder_alone_is_supervised_training(monkeypatch):
    monkeypatch.setattr(MCNet, "kinds", ("transposed",))
    losses = []
    for name in ("mcnet", "supervised"):
        trainer = site(config_of(name), pictures())
        labelled, _, none = parts(trainer)
        losses.append(trainer.losses((labelled, none), draw(), 1.0)[0].item())
    assert losses[0] == losses[1]
