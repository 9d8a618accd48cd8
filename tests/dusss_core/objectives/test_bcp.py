"""Bidirectional copy-paste: the mixtures and their loss by hand, and what the teacher is when."""

from __future__ import annotations

import math

import pytest
import torch

from dusss_core.losses import supervised_loss
from dusss_core.objectives import bcp
from dusss_core.objectives.bcp import ALPHA, START, box_mask, hard_labels
from dusss_core.phases import Phase
from dusss_core.training import can_train
from tests.dusss_core.objectives.sites import config_of, draw, parts, pictures, site

LATE = 0.9
"""A share of the phase at which unlabelled pictures are in."""


def even_odds(trainer):
    """Student and teacher that call every pixel one half."""
    for network in (trainer.student, trainer.objective.teacher.model):
        for parameter in network.head.parameters():
            parameter.data.zero_()
    return trainer


def four_and_four(trainer):
    return trainer.labelled[:4], trainer.unlabelled[:4]


@pytest.mark.parametrize("seed", range(4))
def test_at_even_odds_the_loss_is_known_wherever_the_box_lies(seed):
    trainer = even_odds(site(config_of("bcp", dice=False), pictures()))
    loss, figures = trainer.losses(four_and_four(trainer), draw(seed), LATE)
    assert loss.item() == pytest.approx(1.039721, abs=1e-6)
    assert loss.item() == pytest.approx(math.log(2) * (1 + ALPHA))
    assert figures == {"labelled": pytest.approx(math.log(2)), "unlabelled": pytest.approx(math.log(2))}
    loss, figures = trainer.losses(four_and_four(trainer), draw(seed), 0.0)
    assert loss.item() == pytest.approx(math.log(2)) and figures["unlabelled"] == 0


@pytest.mark.parametrize(
    ("size", "side", "share"), [(112, 74, 0.4365), (224, 149, 0.4425), (256, 170, 0.4410), (48, 32, 4 / 9)]
)
def test_the_box_has_two_thirds_of_the_sides(size, side, share):
    box = ~box_mask((size, size), draw())
    assert (int(box.any(dim=1).sum()), int(box.any(dim=0).sum())) == (side, side)
    assert int(box.sum()) == side**2 and box.float().mean().item() == pytest.approx(share, abs=5e-5)


def test_the_box_lies_anywhere_in_the_picture():
    generator = draw()
    boxes = [(~box_mask((32, 32), generator)).nonzero() for _ in range(1500)]
    assert {tuple(box[0].tolist()) for box in boxes} == {(top, left) for top in range(12) for left in range(12)}
    assert all(box.max() < 32 for box in boxes)


def looked_at(trainer, batch, share=LATE, seed=0):
    """The pictures that the student sees, those that the teacher labels, and the loss."""
    seen = {"student": [], "teacher": []}
    networks = {"student": trainer.student, "teacher": trainer.objective.teacher.model}
    hooks = [
        network.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].clone()))
        for name, network in networks.items()
    ]
    loss, figures = trainer.losses(batch, draw(seed), share)
    for hook in hooks:
        hook.remove()
    return seen["student"], seen["teacher"], loss, figures


def test_a_box_goes_both_ways(monkeypatch):
    keep = torch.ones(32, 32, dtype=torch.bool)
    keep[5:26, 3:24] = False
    monkeypatch.setattr(bcp, "box_mask", lambda size, generator: keep)
    views = {}
    trainer = site(config_of("bcp"), pictures())
    monkeypatch.setattr(trainer, "normalise", lambda view: views.setdefault("x", view.clone()))
    [mixed], labels, _, _ = looked_at(trainer, four_and_four(trainer))
    l_a, l_b, u_a, u_b = views["x"].split(2)
    assert [torch.equal(seen, wanted) for seen, wanted in zip(labels, (u_a, u_b), strict=True)] == [True, True]
    inward, outward = mixed.split(2)
    assert torch.equal(inward[..., ~keep], l_a[..., ~keep]) and torch.equal(inward[..., keep], u_a[..., keep])
    assert torch.equal(outward[..., ~keep], u_b[..., ~keep]) and torch.equal(outward[..., keep], l_b[..., keep])


def test_without_a_box_it_is_half_of_supervised_training_and_pseudo_labels(monkeypatch):
    monkeypatch.setattr(bcp, "box_mask", lambda size, generator: torch.ones(size, dtype=torch.bool))
    trainer = site(config_of("bcp", norm="group", weight_semi=3), pictures())
    kept = {}
    views = trainer.objective.weak_views
    monkeypatch.setattr(trainer.objective, "weak_views", lambda *given: kept.setdefault("both", views(*given)))
    [mixed], labels, loss, _ = looked_at(trainer, four_and_four(trainer))
    x, mask = trainer.normalise(kept["both"][0]), kept["both"][1]
    u_a, l_b = mixed.split(2)
    assert torch.equal(l_b, x[2:4]) and torch.equal(u_a, x[4:6]) and torch.equal(u_a, labels[0])
    with torch.no_grad():
        supervised = supervised_loss(trainer.student(l_b), mask[2:4], dice=True)
        pseudo = supervised_loss(trainer.student(u_a), hard_labels(trainer.objective.teacher(u_a)), dice=True)
    assert loss.item() == pytest.approx(((supervised + 3 * ALPHA * pseudo) / 2).item())


def test_without_a_weight_nothing_is_learnt_from_what_the_teacher_says():
    losses = {}
    for weight in (0, 1):
        trainer = site(config_of("bcp", weight_semi=weight), pictures())
        for sure in (-50.0, 50.0):
            trainer.objective.teacher.model.head.bias.data.fill_(sure)
            _, _, loss, figures = looked_at(trainer, four_and_four(trainer))
            losses[weight, sure] = loss.item()
            assert loss.item() == pytest.approx(figures["labelled"] + weight * ALPHA * figures["unlabelled"])
    assert losses[0, -50.0] == losses[0, 50.0] and losses[1, -50.0] != losses[1, 50.0]


@pytest.mark.parametrize("batch", [5, 8])  # 6 and 4 steps in two rounds: START falls between two of them, and on one
def test_the_teacher_is_the_student_until_unlabelled_pictures_come_in(batch):
    config = config_of("bcp", batch=batch)
    trainer = site(config, pictures())
    all_steps = 2 * trainer.steps_per_round
    equal, heard = [], []
    follow = trainer.objective.after_step

    def watched(step, share_done):
        follow(step, share_done)
        student, teacher = trainer.student.state_dict(), trainer.objective.teacher.model.state_dict()
        equal.append(all(torch.equal(student[name], teacher[name]) for name in student))

    trainer.objective.after_step = watched
    trainer.objective.teacher.model.register_forward_pre_hook(lambda *_: heard.append(len(equal)))
    for number in (1, 2):
        trainer.train_round(number)
    early = [step / all_steps < START for step in range(all_steps)]
    assert equal == early and 0 < sum(early) < all_steps
    assert sorted(set(heard)) == [step for step in range(all_steps) if not early[step]]


def test_a_site_that_missed_rounds_goes_by_the_phase_and_not_by_its_own_steps():
    trainer = site(config_of("bcp"), pictures())
    trainer.train_round(2)  # its first
    student, teacher = trainer.student.state_dict(), trainer.objective.teacher.model.state_dict()
    assert trainer.step == 2 and any(not torch.equal(student[name], teacher[name]) for name in student)


def test_the_teacher_averages_buffers_too_and_normalises_with_its_own_batch():
    trainer = site(config_of("bcp"), pictures())
    assert trainer.objective.teacher.model.training and trainer.objective.teacher.follows_buffers


@pytest.mark.parametrize(("batch", "each"), [(4, 2), (8, 4), (11, 4), (16, 8)])
def test_a_batch_has_as_many_pictures_of_either_kind_and_they_can_be_halved(batch, each):
    trainer = site(config_of("bcp", batch=batch, labelled_share=0.25), pictures(n=24, labelled=18))
    for labelled, other in trainer.batches(5, draw()):
        assert len(labelled) == len(other) == each


def test_where_all_pictures_are_labelled_they_are_mixed_with_each_other_to_the_end():
    trainer = site(config_of("bcp"), pictures(labelled=12))
    [batch] = trainer.batches(1, draw())
    [mixed], heard, loss, figures = looked_at(trainer, batch)
    assert len(batch[0]) == 8 and len(mixed) == 4 and not heard
    assert loss.item() == pytest.approx(figures["labelled"]) and figures["unlabelled"] == 0


def test_a_site_without_labels_has_nothing_to_paste_into():
    config = config_of("bcp")
    assert "method.objective bcp needs some" in can_train(config, Phase.SEGMENT, pictures(labelled=0))


def test_labels_are_hard_keep_all_their_components_and_get_no_gradient():
    logits = torch.full((1, 1, 8, 8), -3.0)
    logits[..., 1:3, 1:3] = logits[..., 5:7, 4:8] = 2.0
    labels = hard_labels(logits.requires_grad_())
    assert torch.equal(labels, (logits[:, 0] > 0).long()) and not labels.requires_grad
    several = torch.randn(2, 3, 4, 4, generator=draw())
    assert torch.equal(hard_labels(several), several.argmax(dim=1))


def test_it_uses_no_labelled_picture_alone():
    trainer = site(config_of("bcp"), pictures(labelled=1))
    labelled, other, _ = parts(trainer)
    assert len(labelled) == 1 and len(other) == 11
    assert math.isfinite(trainer.train_round(2)["loss"])
