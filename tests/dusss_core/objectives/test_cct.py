"""Cross-consistency: its loss by hand, whose gradient the main decoder never sees, and the three perturbations."""

from __future__ import annotations

import pytest
import torch

from dusss_core.objectives import cct
from dusss_core.objectives.cct import (
    CCT,
    DROP_FROM,
    DROP_TO,
    DROPOUT,
    NOISE,
    PERTURBATIONS,
    RAMP,
    agreement,
    feature_drop,
    feature_dropout,
    feature_noise,
)
from tests.dusss_core.gradients import assert_same_as_reference
from tests.dusss_core.objectives.sites import config_of, draw, parts, pictures, site


def logit(p: float) -> torch.Tensor:
    return torch.tensor(p, dtype=torch.float64).logit().view(1, 1, 1, 1)


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=draw(seed))


def test_the_agreement_of_three_auxiliary_decoders_by_hand():
    # (0.01 + 0.04 + 0.04) / 3
    assert agreement(logit(0.7), [logit(p) for p in (0.6, 0.5, 0.9)]).item() == pytest.approx(0.03)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_agreement_has_the_gradients_of_a_naive_one_and_none_for_the_main_decoder(classes):
    def probabilities(z):
        return z.sigmoid() if classes == 1 else z.exp() / z.exp().sum(dim=1, keepdim=True)

    def naive(main, *others):
        target = probabilities(main).detach()
        return sum(((probabilities(z) - target) ** 2).sum() for z in others) / (len(others) * main.numel())

    logits = torch.randn(4, 2, classes, 3, 2, generator=draw(), dtype=torch.float64)
    assert_same_as_reference(lambda main, *others: agreement(main, others), naive, *logits)


def test_unlabelled_pictures_teach_the_encoder_and_the_auxiliary_decoders_and_not_the_main_one():
    trainer = site(config_of("cct"), pictures())
    _, other, none = parts(trainer)
    trainer.losses((none, other), draw(), 1.0)[0].backward()
    reached = {
        name.split(".")[0]
        for name, parameter in trainer.student.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }
    assert reached == {"stem", "down", "others"}
    main = [*trainer.student.up.parameters(), *trainer.student.head.parameters()]
    assert all(parameter.grad is None for parameter in main)


def test_equal_decoders_that_see_the_same_agree(monkeypatch):
    trainer = site(config_of("cct"), pictures())
    for decoder in trainer.student.others:
        decoder.up.load_state_dict(trainer.student.up.state_dict())
        decoder.head.load_state_dict(trainer.student.head.state_dict())
    batch = trainer.labelled, trainer.unlabelled
    assert trainer.losses(batch, draw(), 1.0)[1]["consistency"] > 1e-6
    monkeypatch.setattr(cct, "PERTURBATIONS", (lambda x, _: x,) * 3)
    assert trainer.losses(batch, draw(), 1.0)[1]["consistency"] == 0


def test_without_auxiliary_decoders_and_weight_it_is_supervised_training(monkeypatch):
    monkeypatch.setattr(cct, "PERTURBATIONS", ())
    losses = []
    for name in ("cct", "supervised"):
        trainer = site(config_of(name, weight_semi=0), pictures())
        labelled, _, none = parts(trainer)
        losses.append(trainer.losses((labelled, none), draw(), 1.0)[0].item())
    assert losses[0] == losses[1]


def test_all_decoders_learn_from_masks_and_the_agreement_is_ramped_up(monkeypatch):
    trainer = site(config_of("cct", weight_semi=3), pictures())
    weight = trainer.objective.unlabelled_weight
    assert weight(0) == pytest.approx(3 * 0.0067379, rel=1e-4) and weight(RAMP) == weight(1) == 3
    labelled, other, none = parts(trainer)
    loss, figures = trainer.losses((labelled, other), draw(), 1.0)
    assert loss.item() == pytest.approx(figures["supervised"] + 3 * figures["consistency"])
    costs = []
    monkeypatch.setattr(CCT, "supervised", lambda *given: costs.append(1) or torch.tensor(float(len(costs))))
    assert trainer.losses((labelled, none), draw(), 1.0)[1]["supervised"] == 2.5  # the mean of 1, 2, 3, 4


@torch.no_grad()
def test_the_deployed_answer_is_not_perturbed():
    student = site(config_of("cct"), pictures()).student.eval()
    x = maps(2, 1, 32, 32)
    assert torch.equal(student(x), student(x)) and torch.equal(student(x), student.all_logits(x)[0])


# ---- the perturbations ----


@pytest.mark.parametrize("perturb", PERTURBATIONS)
def test_a_perturbation_follows_from_the_draw_alone_and_keeps_shape_type_and_zero(perturb):
    x = maps(3, 8, 6, 5)
    first, again, other = (perturb(x, draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert perturb(x.bfloat16(), draw()).dtype == torch.bfloat16 and first.shape == x.shape
    assert torch.equal(perturb(torch.zeros_like(x), draw()), torch.zeros_like(x))


def test_feature_noise_is_bounded_and_new_for_every_number():
    factor = feature_noise(torch.ones(4, 8, 16, 16), draw())
    assert factor.min() >= 1 - NOISE and factor.max() <= 1 + NOISE
    assert factor.std().item() == pytest.approx(NOISE / 3**0.5, rel=0.03)
    assert len(factor.unique()) > 0.9 * factor.numel()


def test_feature_dropout_takes_whole_channels_and_scales_the_others_up():
    factor = feature_dropout(torch.ones(64, 64, 2, 2), draw())
    assert torch.equal(factor, factor[:, :, :1, :1].expand_as(factor))
    kept = factor[:, :, 0, 0]
    assert kept.unique().tolist() == pytest.approx([0, 1 / (1 - DROPOUT)])
    assert (kept == 0).float().mean().item() == pytest.approx(DROPOUT, abs=0.03)
    assert kept.mean().item() == pytest.approx(1, abs=0.03)


def test_feature_drop_leaves_out_the_most_active_places_in_all_channels():
    x = torch.rand(16, 1, 32, 32, generator=draw(1)) * torch.tensor([0.5, 1.5]).view(1, 2, 1, 1)
    kept = feature_drop(x, draw()) != 0
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    share = (x.mean(dim=1) / x.mean(dim=1).amax(dim=(1, 2), keepdim=True)).flatten(1)
    kept = kept[:, 0].flatten(1)
    assert kept[share < DROP_FROM].all() and not kept[share > DROP_TO].any()
    # each picture has a threshold of its own
    highest = torch.where(kept, share, 0).amax(dim=1)
    assert highest.min() < 0.75 and highest.max() > 0.85


def test_feature_drop_keeps_a_map_whose_means_are_nowhere_positive():
    for x in (-maps(2, 4, 8, 8).abs(), torch.zeros(2, 4, 8, 8)):
        kept = feature_drop(x.requires_grad_(), draw())
        kept.sum().backward()
        assert torch.equal(kept, x) and torch.equal(x.grad, torch.ones_like(x))
