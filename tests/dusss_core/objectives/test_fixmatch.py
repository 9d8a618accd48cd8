"""FixMatch: labels and their cost by hand, who sees which view, and in what mode the student labels."""

from __future__ import annotations

import math

import pytest
import torch

from dusss_core.losses import supervised_loss
from dusss_core.objectives import fixmatch
from dusss_core.objectives.fixmatch import CONFIDENCE, sure_labels
from tests.dusss_core.gradients import assert_same_as_reference
from tests.dusss_core.objectives.sites import config_of, draw, parts, pictures, site

NAME = "fixmatch"


def logit(*p: float) -> torch.Tensor:
    """1 x 1 x 1 x W logits."""
    return torch.tensor(p, dtype=torch.float64).logit()[None, None, None]


def test_pixels_at_least_as_sure_as_the_threshold_have_a_label():
    label, sure = sure_labels(logit(0.96, 0.94, 0.5, 0.06, 0.04))
    assert label.tolist() == [[[1, 1, 0, 0, 0]]]
    assert sure.tolist() == [[[True, False, False, False, True]]]
    # of two complementary channels it is the same
    p = torch.tensor([[0.04, 0.96], [0.06, 0.94]], dtype=torch.float64)
    label, sure = sure_labels(p.log().T[None, :, None])
    assert label.tolist() == [[[1, 1]]] and sure.tolist() == [[[True, False]]]
    assert CONFIDENCE == 0.95


def test_a_sure_pixel_costs_its_cross_entropy_over_all_pixels():
    sure = torch.tensor([[[True, False, False, False]]])
    mask = torch.tensor([[[1, 1, 0, 0]]])
    loss = supervised_loss(logit(0.5, 0.5, 0.5, 0.5), mask, dice=False, sure=sure)
    assert loss.item() == pytest.approx(math.log(2) / 4)
    # Dice of that pixel alone: 1 - (2 * 0.5 + 1) / (0.5 + 1 + 1)
    with_dice = supervised_loss(logit(0.5, 0.5, 0.5, 0.5), mask, dice=True, sure=sure)
    assert with_dice.item() == pytest.approx(math.log(2) / 4 + 0.2)


def test_a_class_of_which_no_pixel_is_sure_is_not_called_absent():
    """Else all pictures whose finding the student is not sure of yet would teach that there is none."""
    sure = torch.tensor([[[True, False, False, False]]])
    z = logit(0.5, 0.5, 0.5, 0.5)
    background, foreground = torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[1, 0, 0, 0]]])
    assert supervised_loss(z, background, dice=True, sure=sure).item() == pytest.approx(math.log(2) / 4)
    assert supervised_loss(z, foreground, dice=True, sure=sure).item() == pytest.approx(math.log(2) / 4 + 0.2)
    # of a mask it is asked: there a class is absent
    assert supervised_loss(z, 0 * background, dice=True).item() == pytest.approx(math.log(2) + 1 - 1 / 3)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_cost_of_sure_pixels_has_the_gradients_of_a_naive_one(classes):
    sure = torch.rand(2, 3, 2, generator=draw(1)) < 0.5
    mask = torch.randint(0, max(2, classes), (2, 3, 2), generator=draw(2))

    def naive(z):
        total = 0.0
        for b in range(2):
            p = z[b].sigmoid() if classes == 1 else z[b].exp() / z[b].exp().sum(dim=0)
            whole = torch.cat([1 - p, p]) if classes == 1 else p
            truth = torch.stack([(mask[b] == c).double() for c in range(len(whole))])
            cost = -sum(whole[mask[b, y, x], y, x].log() for y in range(3) for x in range(2) if sure[b, y, x]) / 6
            dice = 0.0
            for c in range(1, len(whole)):
                if not (truth[c] * sure[b]).any():
                    continue
                overlap = (whole[c] * truth[c] * sure[b]).sum()
                dice += 1 - (2 * overlap + 1) / (((whole[c] + truth[c]) * sure[b]).sum() + 1)
            total = total + cost + dice / (len(whole) - 1)
        return total / 2

    z = torch.randn(2, classes, 3, 2, generator=draw(), dtype=torch.float64)
    assert_same_as_reference(lambda z: supervised_loss(z, mask, dice=True, sure=sure), naive, z, tolerance=1e-4)


@pytest.mark.parametrize("dice", [False, True])
def test_limits_no_sure_pixel_costs_nothing_and_all_sure_ones_cost_what_a_mask_costs(dice):
    z = torch.randn(2, 1, 4, 4, generator=draw()).requires_grad_()
    mask = torch.randint(0, 2, (2, 4, 4), generator=draw(1))
    none = supervised_loss(z, mask, dice=dice, sure=torch.zeros(2, 4, 4, dtype=torch.bool))
    none.backward()
    assert none.item() == 0 and z.grad.abs().max() == 0
    whole = supervised_loss(z, mask, dice=dice, sure=torch.ones(2, 4, 4, dtype=torch.bool))
    assert whole.item() == pytest.approx(supervised_loss(z, mask, dice=dice).item())


def test_the_weak_view_labels_without_gradient_and_the_strong_one_learns_from_it(monkeypatch):
    trainer = site(config_of(NAME, norm="group"), pictures())
    labelled, other, _ = parts(trainer)
    labelling, shown, answers = [], [], []
    monkeypatch.setattr(
        "dusss_core.objectives.objective.weak_view", lambda picture, generator: torch.zeros_like(picture)
    )
    monkeypatch.setattr(fixmatch, "strong_view", lambda picture, generator, strength: torch.ones_like(picture))
    monkeypatch.setattr(fixmatch, "sure_labels", lambda z: labelling.append(z) or sure_labels(z))

    def seen(_, inputs, output):
        output.retain_grad()
        shown.append(inputs[0])
        answers.append(output)

    trainer.student.register_forward_hook(seen)
    loss, _ = trainer.losses((labelled, other), draw(), 0.5)
    loss.backward()
    # one pass, as published: labelled, weak, strong
    [x], [z] = shown, answers
    mean, std = trainer.config.image.mean, trainer.config.image.std
    sizes = [len(labelled), len(other), len(other)]
    _, weak, strong = x.split(sizes)
    assert weak.unique().tolist() == [-mean / std] and strong.unique().tolist() == [(1 - mean) / std]
    assert torch.equal(labelling[0], z.split(sizes)[1])
    _, weak, strong = z.grad.split(sizes)
    assert weak.abs().max() == 0 and strong.abs().max() > 0


def test_labels_lie_where_their_pixels_are(monkeypatch):
    """With views that change nothing, a sure student that labels itself agrees with itself."""
    trainer = site(config_of(NAME, norm="group", dice=False), pictures())
    monkeypatch.setattr("dusss_core.objectives.objective.weak_view", lambda picture, generator: picture)
    monkeypatch.setattr(fixmatch, "strong_view", lambda picture, generator, strength: picture)
    trainer.student.head.weight.data.mul_(2000)  # sure of nearly every pixel, of either class
    _, other, none = parts(trainer)
    _, figures = trainer.losses((none, other), draw(), 0.5)
    assert figures["confident"] > 0.9 and figures["semi"] < 0.05


def test_the_loss_is_that_of_masks_and_of_sure_pixels_by_their_weight():
    trainer = site(config_of(NAME, weight_semi=3), pictures())
    labelled, other, _ = parts(trainer)
    loss, figures = trainer.losses((labelled, other), draw(), 0.0)
    assert figures["semi"] > 0 and 0.5 < figures["confident"] <= 1
    assert loss.item() == pytest.approx(figures["supervised"].item() + 3 * figures["semi"].item())


def test_an_unsure_student_learns_from_masks_alone():
    config = config_of(NAME)
    config.student.mask_bias = 0.0
    losses = []
    for share in (0.0, 1.0):
        trainer = site(config, pictures())
        loss, figures = trainer.losses((trainer.labelled, trainer.unlabelled), draw(), share)
        losses.append((loss.item(), figures["supervised"].item()))
        assert figures["confident"] == 0 and figures["semi"] == 0
    assert losses[0] == losses[1] and losses[0][0] == losses[0][1]


@pytest.mark.parametrize(("share_done", "ramp"), [(0.0, math.exp(-5)), (0.1, math.exp(-5 / 4)), (0.2, 1), (1.0, 1)])
def test_where_no_mask_holds_it_what_it_is_sure_of_comes_in_over_the_ramp_up(share_done, ramp):
    trainer = site(config_of(NAME, weight_semi=0.5, rampup=0.2), pictures(labelled=0))
    assert trainer.pace(share_done) == pytest.approx(0.5 * ramp)


def test_on_labelled_pictures_it_is_supervised_training():
    losses = []
    for name in (NAME, "supervised"):
        config = config_of(name)
        config.student.mask_bias = None
        trainer = site(config, pictures())
        labelled, _, none = parts(trainer)
        losses.append(trainer.losses((labelled, none), draw(), 0.5)[0].item())
    assert losses[0] == losses[1]
