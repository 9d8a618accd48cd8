"""UniMatch: its weights and boxes by hand, who sees which view, and what a view's labels are after CutMix."""

from __future__ import annotations

import math

import pytest
import torch

from dusss_core.losses import supervised_loss
from dusss_core.objectives import unimatch
from dusss_core.objectives.cct import feature_dropout
from dusss_core.objectives.fixmatch import sure_labels
from dusss_core.objectives.unimatch import LARGEST_AREA, LEAST_AREA, MIXED, boxes, mixed
from tests.dusss_core.objectives.sites import config_of, draw, parts, pictures, site

NAME = "unimatch"


def test_the_three_views_weigh_a_quarter_a_quarter_and_a_half_and_all_is_halved():
    trainer = site(config_of(NAME, weight_semi=3), pictures())
    labelled, other, none = parts(trainer)
    loss, by = trainer.losses((labelled, other), draw(), 0.0)
    assert min(by[name] for name in ("supervised", "strong_1", "strong_2", "dropped")) > 0
    semi = by["strong_1"] / 4 + by["strong_2"] / 4 + by["dropped"] / 2
    assert loss.item() == pytest.approx(((by["supervised"] + 3 * semi) / 2).item())
    loss, by = trainer.losses((labelled, none), draw(), 0.0)
    assert loss.item() == pytest.approx(by["supervised"].item() / 2)


def test_at_even_odds_of_a_student_that_was_sure_the_loss_is_known(monkeypatch):
    """CE alone, all pixels labelled background by decree: each view costs ln 2, masks cost ln 2."""
    trainer = site(config_of(NAME, dice=False), pictures())
    for parameter in trainer.student.head.parameters():
        parameter.data.zero_()
    monkeypatch.setattr(
        unimatch, "sure_labels", lambda z: (torch.zeros_like(z[:, 0]).long(), torch.ones_like(z[:, 0]).bool())
    )
    loss, by = trainer.losses((trainer.labelled, trainer.unlabelled), draw(), 0.5)
    assert loss.item() == pytest.approx(math.log(2)) and by["dropped"].item() == pytest.approx(math.log(2))


def test_without_perturbations_all_views_answer_alike(monkeypatch):
    """No colour, no box, no dropout: the limit in which the three costs are one, that of the weak view by itself."""
    monkeypatch.setattr("dusss_core.objectives.objective.weak_view", lambda picture, generator: picture)
    monkeypatch.setattr(unimatch, "strong_view", lambda picture, generator, strength: picture)
    monkeypatch.setattr(unimatch, "MIXED", 0.0)
    monkeypatch.setattr(unimatch, "DROPOUT", 0.0)
    trainer = site(config_of(NAME, norm="group"), pictures())
    _, other, none = parts(trainer)
    seen = []
    trainer.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    _, by = trainer.losses((none, other), draw(), 0.5)
    with torch.no_grad():
        z = trainer.student(seen[0].split(len(other))[0])
    label, sure = sure_labels(z)
    wanted = supervised_loss(z, label, dice=True, sure=sure).item()
    assert wanted > 0
    for name in ("strong_1", "strong_2", "dropped"):
        assert by[name].item() == pytest.approx(wanted, rel=1e-4)


def test_a_box_takes_the_label_of_the_picture_that_it_came_from(monkeypatch):
    """Three pictures of one brightness each, labelled by it: after CutMix the label is still that of the pixel."""
    trainer = site(config_of(NAME, norm="group"), pictures())
    other = trainer.unlabelled[:3]
    level = torch.tensor([0.1, 0.5, 0.9])[:, None, None, None]
    monkeypatch.setattr(
        "dusss_core.objectives.objective.weak_view", lambda picture, generator: torch.ones_like(picture) * level
    )
    monkeypatch.setattr(unimatch, "strong_view", lambda picture, generator, strength: torch.ones_like(picture) * level)
    monkeypatch.setattr(unimatch, "MIXED", 1.0)
    numbers = torch.arange(3)[:, None, None].expand(3, 32, 32)
    monkeypatch.setattr(unimatch, "sure_labels", lambda z: (numbers, numbers != 1))
    seen, costs = [], []
    trainer.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))

    def cost(logits, label, *, dice, sure):
        costs.append((label, sure))
        return logits.sum()

    monkeypatch.setattr(unimatch, "supervised_loss", cost)
    trainer.losses((trainer.labelled[:0], other), draw(), 0.5)
    [strong] = seen  # the weak view goes through encoder and decoder by themselves
    mean, std = trainer.config.image.mean, trainer.config.image.std
    for view, (label, sure) in zip(strong.split(3), costs[1:], strict=True):
        number = ((view[:, 0] * std + mean - 0.1) / 0.4).round().long()
        assert torch.equal(label, number) and torch.equal(sure, number != 1)
        assert not torch.equal(label, numbers)
    assert torch.equal(costs[0][0], numbers)
    assert not torch.equal(costs[1][0], costs[2][0])  # each strong view has boxes of its own


def test_mixing_takes_each_sample_from_the_one_before():
    values = torch.tensor([[1, 1], [2, 2], [3, 3]])
    inside = torch.tensor([[True, False], [False, True], [False, False]])
    assert mixed(values, inside).tolist() == [[3, 1], [2, 1], [3, 3]]
    # a picture alone is mixed with itself
    assert mixed(values[:1], inside[:1]).tolist() == [[1, 1]]


def test_boxes_have_a_share_of_the_picture_and_lie_anywhere_in_it():
    found = boxes(4000, (64, 64), draw())
    some = found.flatten(1).any(dim=1)
    assert some.float().mean().item() == pytest.approx(MIXED, abs=0.03)
    area = found[some].float().mean(dim=(1, 2))
    assert area.min() > LEAST_AREA - 0.01 and area.max() < LARGEST_AREA + 0.02
    assert area.mean().item() == pytest.approx((LEAST_AREA + LARGEST_AREA) / 2, abs=0.02)
    heights, widths = found[some].any(dim=2).sum(dim=1), found[some].any(dim=1).sum(dim=1)
    assert torch.equal(heights * widths, found[some].sum(dim=(1, 2)))  # one rectangle each
    assert (heights > widths).float().mean().item() == pytest.approx(0.5, abs=0.05)
    # the corner pixels are reached, and no box is all of the picture
    assert found[:, 0, 0].any() and found[:, -1, -1].any() and found[:, 0, -1].any()


def test_dropped_features_lack_whole_channels_and_the_mean_is_kept():
    x = torch.ones(50, 40, 3, 3)
    dropped = feature_dropout(x, draw(), 0.5)
    channels = dropped.flatten(2)
    assert torch.equal(channels.amin(dim=2), channels.amax(dim=2)) and set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)


def test_features_are_dropped_of_unlabelled_pictures_at_every_level(monkeypatch):
    trainer = site(config_of(NAME), pictures())
    labelled, other, _ = parts(trainer)
    seen = []
    monkeypatch.setattr(unimatch, "feature_dropout", lambda x, generator, share: seen.append((len(x), share)) or x)
    trainer.losses((labelled, other), draw(), 0.5)
    assert seen == [(len(other), 0.5)] * 5


@pytest.mark.parametrize(("share_done", "ramp"), [(0.0, math.exp(-5)), (0.1, math.exp(-5 / 4)), (0.2, 1), (1.0, 1)])
def test_where_no_mask_holds_it_what_it_is_sure_of_comes_in_over_the_ramp_up(share_done, ramp):
    trainer = site(config_of(NAME, weight_semi=0.5, rampup=0.2), pictures(labelled=0))
    assert trainer.pace(share_done) == pytest.approx(0.5 * ramp)


def test_the_weak_view_labels_and_gets_no_gradient_for_it(monkeypatch):
    trainer = site(config_of(NAME, norm="group"), pictures())
    labelling = []
    monkeypatch.setattr(unimatch, "sure_labels", lambda z: labelling.append(z.detach().clone()) or sure_labels(z))
    _, other, none = parts(trainer)
    given = []
    decode = trainer.student.decode

    def watched(levels, which=0):
        answers = decode(levels, which)
        if answers.requires_grad:
            answers.retain_grad()
            given.append(answers)
        return answers

    trainer.student.decode = watched
    loss, _ = trainer.losses((none, other), draw(), 0.5)
    loss.backward()
    weak, dropped = given[0].detach().split(len(other))
    assert not torch.equal(weak, dropped)
    [asked] = labelling
    assert torch.equal(asked, weak)
    weak, dropped = given[0].grad.split(len(other))
    assert weak.abs().max() == 0 and dropped.abs().max() > 0
