"""Smoothness and separation: distances by hand, the direction that is followed, and which pixels are compared."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dusss_core.models.batch_norm import untracked
from dusss_core.models.pixel_heads import PixelHeads
from dusss_core.objectives import ssnet
from dusss_core.objectives.ssnet import (
    CONTRAST,
    PROBE,
    RADIUS,
    SMOOTH,
    STORED,
    WEIGHT,
    adversarial_distance,
    best,
    class_distance,
    dice_distance,
    sampled,
    taken,
    unit,
)
from dusss_core.phases import Phase
from dusss_core.training import initial_shared
from tests.dusss_core.gradients import assert_same_as_reference
from tests.dusss_core.objectives.sites import changed, config_of, draw, parts, pictures, site, trained

LATE = 0.9
"""A share of the phase at which the weight is far from 0."""


def rows(*vectors: list[float]) -> torch.Tensor:
    """1 x D x n x 1, from n vectors of D numbers."""
    return torch.tensor(vectors, dtype=torch.float64).T[None, ..., None]


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.float64)


# ---- nearness ----


@pytest.mark.parametrize(
    ("features", "stored", "distance"),
    [
        ([[3.0, 0.0]], [[0.5, 0.0]], 0.0),
        ([[1.0, 0.0]], [[0.0, 2.0]], 1.0),
        ([[1.0, 0.0]], [[-1.0, 0.0]], 2.0),
        # 0, 1, 1 - 1/sqrt 2 twice
        ([[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], (0 + 1 + 2 * (1 - 1 / math.sqrt(2))) / 4),
    ],
)
def test_equal_features_are_at_distance_0_orthogonal_ones_at_1(features, stored, distance):
    found, some = class_distance(rows(*features), rows(*stored), ones(1, len(features)), ones(1, len(stored)))
    assert found.item() == pytest.approx(distance, abs=1e-12) and some == 1


def test_the_distance_is_the_mean_over_all_pairs_weighted_by_both_selectors():
    f, s = (torch.randn(n, 5, generator=draw(n), dtype=torch.float64) for n in (6, 4))
    a, b = (torch.rand(n, generator=draw(10 + n), dtype=torch.float64) for n in (6, 4))
    pairs = 1 - F.cosine_similarity(f[:, None], s[None], dim=2)
    # as published: each selector's weights scaled to a mean of 1
    wanted = (pairs * (6 / a.sum() * a)[:, None] * (4 / b.sum() * b)).mean()
    # six pixels of two pictures
    found, _ = class_distance(f.view(2, 3, 5).movedim(2, 1)[..., None], s.T[None, ..., None], a.view(2, 3), b[None])
    assert found.item() == pytest.approx(wanted.item(), abs=1e-12)


def test_where_there_is_no_pair_the_distance_is_0_and_counts_for_nothing():
    f, s = (torch.randn(1, 4, 3, 1, generator=draw(seed)).requires_grad_() for seed in (1, 2))
    none, all_ = torch.zeros(1, 3), torch.ones(1, 3)
    for weights in ((none, all_), (all_, none), (none, none)):
        found, some = class_distance(f, s, *weights)
        assert found == 0 and some == 0
        found.backward()
        assert f.grad.isfinite().all() and not f.grad.any()


def test_the_distance_has_the_gradients_of_a_naive_one():
    def naive(features, stored, weight, stored_weight):
        f, s = features[0, :, :, 0].T, stored[0, :, :, 0].T
        a, b = weight[0] / weight.sum(), stored_weight[0] / stored_weight.sum()
        cosine = (f / f.norm(dim=1, keepdim=True)) @ (s / s.norm(dim=1, keepdim=True)).T
        return ((1 - cosine) * a[:, None] * b).sum()

    f, s = (torch.randn(1, 4, n, 1, generator=draw(n), dtype=torch.float64) for n in (5, 3))
    a, b = (torch.rand(1, n, generator=draw(n), dtype=torch.float64) + 0.1 for n in (5, 3))
    assert_same_as_reference(lambda *given: class_distance(*given)[0], naive, f, s, a, b)


# ---- smoothness ----


def logit(p: float, *shape: int) -> torch.Tensor:
    return torch.full(shape or (1, 1, 1, 1), p, dtype=torch.float64).logit()


def test_the_distance_of_two_answers_by_hand():
    # (2 0.8 0.4 4 + 1) / ((0.64 + 0.16) 4 + 1)
    assert dice_distance(logit(0.8, 1, 1, 2, 2), logit(0.4, 1, 1, 2, 2)).item() == pytest.approx(1 - 3.56 / 4.2)
    unsure = torch.randn(3, 1, 4, 4, generator=draw())
    torch.testing.assert_close(dice_distance(unsure, unsure), torch.zeros(3))
    empty = torch.full((1, 1, 8, 8), -40.0)
    assert dice_distance(empty, empty).item() == 0


@pytest.mark.parametrize("classes", [1, 3])
def test_the_distance_of_two_answers_has_the_gradients_of_a_naive_one_on_the_second_side(classes):
    target = torch.randn(2, classes, 3, 2, generator=draw(1), dtype=torch.float64)

    def naive(z):
        p, q = (v.sigmoid() if classes == 1 else v.softmax(dim=1)[:, 1:] for v in (target, z))
        costs = [
            1 - (2 * (p[i, c] * q[i, c]).sum() + SMOOTH) / ((p[i, c] ** 2).sum() + (q[i, c] ** 2).sum() + SMOOTH)
            for i in range(2)
            for c in range(p.shape[1])
        ]
        return sum(costs) / len(costs)

    z = torch.randn(2, classes, 3, 2, generator=draw(2), dtype=torch.float64)
    assert_same_as_reference(lambda z: dice_distance(target.to(z), z).mean(), naive, z)


class FirstRow(nn.Module):
    """Sees the first row of a picture alone, and remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach())
        return torch.cat([x[:, :, :1], 0 * x[:, :, 1:]], dim=2) / 10


def test_a_picture_is_moved_by_exactly_the_radius_uphill():
    network = FirstRow()
    x, noise = (torch.rand(3, 1, 8, 8, generator=draw(seed)) for seed in (1, 2))
    answer = network(x)
    found = adversarial_distance(network, x, answer, noise - 0.5)
    probe, moved = (seen - x for seen in network.seen[1:])
    assert probe.flatten(1).norm(dim=1).tolist() == pytest.approx([PROBE] * 3, rel=1e-5)
    assert moved.flatten(1).norm(dim=1).tolist() == pytest.approx([RADIUS] * 3, rel=1e-5)
    assert moved[:, :, 1:].abs().max() < 1e-4
    at_random = dice_distance(answer, network(x + RADIUS * unit(noise - 0.5))).mean()
    assert found > 3 * at_random
    assert found.item() == pytest.approx(dice_distance(answer, network(x + moved)).mean().item(), rel=1e-4)


def test_the_answer_that_is_started_from_is_not_drawn_to_the_moved_one():
    network = nn.Conv2d(1, 1, 1)
    x = torch.rand(2, 1, 8, 8, generator=draw())
    answer = torch.zeros(2, 1, 8, 8, requires_grad=True)
    adversarial_distance(network, x, answer, x - 0.5).backward()
    assert answer.grad is None and network.weight.grad.abs().max() > 0


def test_an_answer_that_never_changes_is_smooth():
    network = nn.Conv2d(1, 1, 1)
    nn.init.zeros_(network.weight)
    x = torch.rand(2, 1, 8, 8, generator=draw())
    loss = adversarial_distance(network, x, network(x).detach(), x - 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and network.weight.grad.isfinite().all()


def test_smoothness_leaves_every_running_statistic_as_it_is():
    for name in ("unet", "small_unet", "encoder"):
        student = site(config_of("ssnet", network=name), pictures()).student.train()
        buffers = {key: value.clone() for key, value in student.named_buffers()}
        assert any("running_mean" in key for key in buffers)
        x = torch.rand(2, 1, 32, 32, generator=draw())
        adversarial_distance(student, x, torch.zeros(2, 1, 32, 32), x - 0.5).backward()
        assert all(torch.equal(value, buffers[key]) for key, value in student.named_buffers())
        student(x)  # and afterwards they are followed again
        assert not all(torch.equal(value, buffers[key]) for key, value in student.named_buffers())


@pytest.mark.parametrize("training", [True, False])
def test_without_tracking_a_network_answers_as_with_it(training):
    student = site(config_of("ssnet"), pictures()).student.train(training)
    x = torch.rand(2, 1, 32, 32, generator=draw())
    wanted = student(x)
    with untracked(student):
        answer = student(x)
    assert torch.equal(answer, wanted)


def test_smoothness_is_float32_under_autocast():
    config = config_of("ssnet")
    config.runtime.amp = True
    trainer = site(config, pictures())
    seen = []
    trainer.student.head.register_forward_hook(lambda _, inputs, answer: seen.append(answer.dtype))
    trainer.losses((trainer.labelled, trainer.unlabelled), draw(), LATE)
    x = torch.rand(2, 1, 32, 32, generator=draw())
    with trainer.autocast():
        adversarial_distance(trainer.student, x, torch.zeros(2, 1, 32, 32), x - 0.5)
    assert seen == [torch.bfloat16, *[torch.float32] * 4]


# ---- pixels ----


def test_pixels_are_of_the_class_at_random_and_others_fill_up(monkeypatch):
    monkeypatch.setattr(ssnet, "SAMPLED", 4)
    of_class = torch.zeros(3, 4, 4, dtype=torch.bool)
    of_class[0], of_class[1, 1, 2:] = True, True
    chosen = set()
    for seed in range(30):
        pixels = sampled(of_class, draw(seed))
        assert pixels.places.shape == (3, 4) and all(len(set(row.tolist())) == 4 for row in pixels.places)
        assert pixels.of_class.sum(dim=1).tolist() == [4, 2, 0]
        assert set(pixels.places[1][pixels.of_class[1]].tolist()) == {6, 7}
        chosen |= set(pixels.places[0].tolist())
    assert chosen == set(range(16))
    values = torch.arange(2 * 3 * 16).view(3, 2, 4, 4)
    assert torch.equal(taken(values, pixels.places)[1, :, :, 0], values[1].flatten(1)[:, pixels.places[1]])


def ranked(channels: int = 1) -> PixelHeads:
    """Heads that project a pixel's number to itself, and rank it by that."""
    heads = PixelHeads(channels, 1)
    heads.projection = nn.Conv2d(channels, 1, 1, bias=False)
    heads.selectors[0] = nn.Identity()
    nn.init.ones_(heads.projection.weight)
    return heads


def test_those_that_the_selector_ranks_highest_are_stored_and_no_other_than_candidates():
    values = torch.arange(-50.0, 50.0).view(2, 1, 50, 1)[:, :, torch.randperm(50, generator=draw())] / 10
    candidates = values[:, 0, :, 0] < 4
    stored, usable = best(ranked(), 0, values, candidates)
    assert usable.all() and usable.shape == (1, STORED) and not stored.requires_grad
    wanted = sorted(values[candidates[:, None, :, None]].tolist(), reverse=True)[:STORED]
    assert stored[0, 0, :, 0].tolist() == pytest.approx(wanted)
    few = torch.zeros_like(candidates)
    few[1, :3] = True
    stored, usable = best(ranked(), 0, values, few)
    assert usable.sum() == 3 and set(stored[0, 0, :3, 0].tolist()) == set(values[1, 0, :3, 0].tolist())


def test_to_store_pixels_moves_no_statistic_and_leaves_the_heads_training():
    heads = PixelHeads(4, 1).train()
    before = {name: value.clone() for name, value in heads.named_buffers()}
    best(heads, 0, torch.randn(2, 4, 40, 1, generator=draw()), torch.ones(2, 40, dtype=torch.bool))
    assert heads.training and all(module.training for module in heads.modules())
    assert all(torch.equal(value, before[name]) for name, value in heads.named_buffers())


def watched_distances(monkeypatch) -> list[tuple[torch.Tensor, ...]]:
    seen = []

    def watched(*given):
        seen.append(given)
        return class_distance(*given)

    monkeypatch.setattr(ssnet, "class_distance", watched)
    return seen


@pytest.mark.parametrize("classes", [1, 2])
def test_pixels_are_drawn_to_right_ones_of_their_class_and_the_background_to_none(classes, monkeypatch):
    seen = watched_distances(monkeypatch)
    train = pictures(classes=classes)
    trainer = site(config_of("ssnet", classes=classes), train)
    answers = torch.from_numpy(train.masks).long()
    answers[:, :16] = 0  # the student sees nothing of the upper half
    monkeypatch.setattr(ssnet, "hard_labels", lambda logits: answers[order])
    monkeypatch.setattr(trainer, "geometry", lambda count, generator: Still())
    order = [*trainer.labelled, *trainer.unlabelled]
    trainer.losses((trainer.labelled, trainer.unlabelled), draw(), LATE)
    foreground = classes
    assert len(seen) == 2 * foreground
    n = len(trainer.labelled)
    masks = torch.from_numpy(train.masks).long()
    for number in range(foreground):
        labelled, other = seen[2 * number : 2 * number + 2]
        in_class = masks[:n] == number + 1
        assert (labelled[2] > 0).sum() == in_class.sum()
        assert (other[2] > 0).sum() == (answers[order][n:] == number + 1).sum()
        # of all right ones, as many as can be stored
        right = int((in_class & (answers[:n] == number + 1)).sum())
        assert (labelled[3] > 0).sum() == (other[3] > 0).sum() == min(STORED, right)
        assert not labelled[1].requires_grad and labelled[0].requires_grad


class Still:
    """A geometry that moves nothing."""

    def apply(self, picture):
        return picture

    def apply_mask(self, mask):
        return mask


def test_the_mean_is_over_the_classes_that_have_pixels(monkeypatch):
    trainer = site(config_of("ssnet", classes=2), pictures(classes=2))
    distances = iter([(2.0, 1), (0.0, 0), (1.0, 1), (0.5, 1)])  # class 1: labelled, others; class 2: the same
    monkeypatch.setattr(ssnet, "class_distance", lambda *_: tuple(torch.tensor(float(v)) for v in next(distances)))
    batch = (trainer.labelled, trainer.unlabelled)
    # (2 + 1) / 2 of labelled pictures, 0.5 / 1 of the others
    assert trainer.losses(batch, draw(), LATE)[1]["near"] == 2.0


# ---- the whole ----


def test_the_loss_is_the_sum_of_its_parts_with_their_weights():
    trainer = site(config_of("ssnet", weight_semi=3), pictures())
    weight = trainer.objective.unlabelled_weight
    assert weight(0.0) == pytest.approx(3 * WEIGHT * 0.0067379, rel=1e-4) and weight(1.0) == pytest.approx(3 * WEIGHT)
    labelled, other, none = parts(trainer)
    loss, figures = trainer.losses((labelled, other), draw(), 1.0)
    assert min(figures.values()) > 0
    wanted = figures["supervised"] + 3 * WEIGHT * (figures["smooth"] + CONTRAST * figures["near"])
    assert loss.item() == pytest.approx(wanted.item())
    assert set(trainer.losses((none, other), draw(), 1.0)[1]) == {"smooth"}


def test_without_weight_it_is_supervised_training():
    losses = []
    for name in ("ssnet", "supervised"):
        trainer = site(config_of(name, weight_semi=0), pictures())
        labelled, _, none = parts(trainer)
        losses.append(trainer.losses((labelled, none), draw(), 1.0)[0].item())
    assert losses[0] == losses[1]


def test_nearness_teaches_network_prediction_and_both_selectors(monkeypatch):
    trainer = site(config_of("ssnet"), pictures())
    monkeypatch.setattr(ssnet, "adversarial_distance", lambda network, x, logits, noise: logits.new_zeros(()))
    monkeypatch.setattr(trainer.objective, "supervised", lambda logits, mask: logits.new_zeros(()))
    trainer.student.train()
    trainer.losses((trainer.labelled, trainer.unlabelled), draw(), 1.0)[0].backward()
    reached = {
        ".".join(name.split(".")[:2]) if name.startswith("pixel_heads") else name.split(".")[0]
        for name, parameter in trainer.student.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }
    heads = {f"pixel_heads.{part}" for part in ("projection", "prediction", "selectors", "stored_selectors")}
    assert reached == {"stem", "down", "up"} | heads


def test_a_selector_teaches_itself_and_not_what_it_looks_at(monkeypatch):
    trainer = site(config_of("ssnet"), pictures())
    monkeypatch.setattr(ssnet, "class_distance", lambda f, s, weight, other: (weight[0, 0], torch.ones(())))
    monkeypatch.setattr(ssnet, "adversarial_distance", lambda network, x, logits, noise: logits.new_zeros(()))
    monkeypatch.setattr(trainer.objective, "supervised", lambda logits, mask: logits.new_zeros(()))
    trainer.student.train()
    trainer.losses((trainer.labelled, trainer.unlabelled[:1]), draw(), 1.0)[0].backward()
    reached = {name for name, value in trainer.student.named_parameters() if value.grad is not None}
    assert reached and all(name.startswith("pixel_heads.selectors.") for name in reached)


def test_a_site_without_labels_learns_to_be_smooth_and_hands_the_heads_on():
    config, train = config_of("ssnet"), pictures(labelled=0)
    moved = changed(initial_shared(config, Phase.SEGMENT), trained(config, train))
    assert moved and not [name for name in moved if name.startswith("pixel_heads.")]


def test_nothing_of_a_pixel_is_kept_or_travels():
    trainer = site(config_of("ssnet"), pictures())
    trainer.train_round(1)
    assert trainer.objective.state() == {}
    names = {name.split(".")[0] for name in trainer.shared()}
    assert names == {"stem", "down", "up", "head", "pixel_heads"}
