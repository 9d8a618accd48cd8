"""Collaborative mean teacher: uncertainty and exchange of patches by hand, who learns from whom, and the two steps."""

from __future__ import annotations

import math

import pytest
import torch

from dusss_core.losses import supervised_loss
from dusss_core.models.ema import Teacher
from dusss_core.objectives import ucmt
from dusss_core.objectives.bcp import hard_labels
from dusss_core.objectives.ucmt import GRID, RAMP, TOP, WEIGHT, Again, exchanged, patch_uncertainty, rearranged
from dusss_core.phases import Phase
from dusss_core.privacy.mechanism import why_not
from dusss_core.training import Segmenter
from tests.dusss_core.objectives.sites import changed, config_of, draw, parts, pictures, site
from tests.dusss_core.privacy.conftest import private_config
from tests.dusss_core.training.strict_device import STRICT, strict, watched

LATE = 0.9


def logit(p: float) -> torch.Tensor:
    return torch.tensor(p, dtype=torch.float64).logit()


# ---- patches ----


def test_two_answers_that_are_one_half_in_the_mean_are_as_unsure_as_can_be():
    first, second = (logit(p).view(1, 1, 1, 1).expand(1, 1, 2, 2) for p in (0.2, 0.8))
    assert patch_uncertainty(first, second, grid=2).tolist() == [[pytest.approx(math.log(2))] * 4]
    assert math.log(2) == pytest.approx(0.693147, abs=1e-6)
    sure = torch.full((1, 1, 2, 2), 200.0)
    assert patch_uncertainty(sure, sure, grid=1).item() == 0
    # of three classes that nobody can tell apart
    even = torch.zeros(1, 3, 2, 2)
    assert patch_uncertainty(even, even, grid=1).item() == pytest.approx(math.log(3))


def test_uncertainty_is_averaged_over_a_patch_and_has_no_gradient():
    p = torch.tensor([[0.5, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]], dtype=torch.float64).view(1, 1, 2, 4)
    found = patch_uncertainty(p.logit().requires_grad_(), p.logit(), grid=2)
    low = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert (
        found.tolist() == [[pytest.approx(v) for v in ((math.log(2) + low) / 2, low, low, low)]]
        and not found.requires_grad
    )
    assert patch_uncertainty(torch.zeros(2, 1, 32, 32), torch.zeros(2, 1, 32, 32)).shape == (2, GRID * GRID)


def test_one_patch_on_a_grid_of_two_by_two_by_hand():
    # first: least sure of 0, surest of 3; second: least sure of 1, surest of 2
    first, second = torch.tensor([[0.9, 0.5, 0.4, 0.1]]), torch.tensor([[0.3, 0.8, 0.2, 0.6]])
    source = exchanged(first, second, top=1)
    assert source.tolist() == [[2, 3, 2, 3]]
    picture = torch.arange(16.0).view(1, 1, 4, 4)
    mixed = rearranged(picture, source)
    lower = picture[..., 2:, :]
    assert torch.equal(mixed[..., 2:, :], lower) and torch.equal(mixed[..., :2, :], lower)


def test_patches_come_from_the_other_students_order_as_they_were():
    # the least certain patch of the first student, 0, is the most certain one of the second
    first, second = torch.tensor([[0.9, 0.5, 0.4, 0.1]]), torch.tensor([[0.1, 0.8, 0.6, 0.7]])
    assert exchanged(first, second, top=1).tolist() == [[0, 3, 2, 3]]
    # two each
    both = exchanged(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]]), top=2)
    assert both.tolist() == [[1, 0, 3, 2]]


def test_where_both_students_want_a_place_the_second_has_it():
    first, second = torch.tensor([[9.0, 1.0, 2.0, 3.0]]), torch.tensor([[9.0, 3.0, 2.0, 1.0]])
    assert exchanged(first, second, top=1).tolist() == [[1, 1, 2, 3]]


def test_without_patches_everything_stays():
    u = torch.rand(3, GRID * GRID, generator=draw())
    source = exchanged(u, u.flip(1), top=0)
    x = torch.rand(3, 2, 32, 48, generator=draw())
    assert torch.equal(source, torch.arange(GRID * GRID).expand(3, -1)) and torch.equal(rearranged(x, source), x)


def test_patches_of_all_channels_move_together_and_each_picture_for_itself():
    x = torch.rand(2, 3, 32, 32, generator=draw())
    source = torch.stack([torch.randperm(GRID * GRID, generator=draw(i)) for i in range(2)])
    moved = rearranged(x, source)
    for i in range(2):
        for place, origin in ((0, source[i, 0]), (17, source[i, 17]), (255, source[i, 255])):
            (row, column), (top, left) = divmod(place, GRID), divmod(int(origin), GRID)
            at, of = (
                (slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2)),
                (
                    slice(2 * top, 2 * top + 2),
                    slice(2 * left, 2 * left + 2),
                ),
            )
            assert torch.equal(moved[i][:, at[0], at[1]], x[i][:, of[0], of[1]])


# ---- the two steps ----


def test_every_batch_is_taken_twice_and_of_an_odd_number_the_last_once():
    trainer = site(config_of("ucmt"), pictures())
    for steps, kinds in ((5, [False, True, False, True, False]), (2, [False, True]), (1, [False])):
        batches = list(trainer.batches(steps, draw()))
        assert [isinstance(batch, Again) for batch in batches] == kinds
        for first, second in zip(batches[::2], batches[1::2], strict=False):
            assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_pictures_with_masks_are_among_the_others_too():
    trainer = site(config_of("ucmt", batch=4), pictures())
    others = {int(i) for _, other in trainer.batches(40, draw()) for i in other}
    assert others == set(range(12))
    assert {int(i) for labelled, _ in trainer.batches(40, draw()) for i in labelled} == set(trainer.labelled.tolist())


def looked_at(trainer, batch, share=LATE, seed=0):
    """What each network is shown, and the loss."""
    seen = {"first": [], "second": [], "teacher": []}
    networks = (trainer.student, trainer.student.second, trainer.objective.teacher.model)
    hooks = [
        network.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].clone()))
        for name, network in zip(seen, networks, strict=True)
    ]
    loss, figures = trainer.losses(batch, draw(seed), share)
    for hook in hooks:
        hook.remove()
    return seen, loss, figures


def test_each_student_has_a_strong_view_of_its_own_and_masks_are_learnt_from_the_weak_one(monkeypatch):
    made = []
    monkeypatch.setattr(ucmt, "weak_view", lambda picture, generator: picture + 10)
    monkeypatch.setattr(
        ucmt, "strong_view", lambda picture, *_: made.append(picture.clone()) or picture + 100 * len(made)
    )
    trainer = site(config_of("ucmt"), pictures())
    monkeypatch.setattr(trainer, "normalise", lambda x: x)
    n = len(trainer.labelled)
    seen, _, _ = looked_at(trainer, (trainer.labelled, trainer.unlabelled))
    [first], [second], [teacher] = seen.values()
    assert torch.equal(first[:n], second[:n]) and torch.equal(first[:n], teacher[:n])
    plain = teacher[n:] - 10
    assert len(made) == 3 and torch.allclose(made[1], made[2])  # both are made of the picture
    torch.testing.assert_close(first[n:], plain + 200)
    torch.testing.assert_close(second[n:], plain + 300)
    # the second step is taken on the first student's strong views, mixed, by both and without the teacher
    seen, _, _ = looked_at(trainer, Again(trainer.labelled, trainer.unlabelled))
    [first], [second] = seen["first"], seen["second"]
    assert not seen["teacher"] and torch.equal(first, second) and len(first) == 12
    assert (first[:n] >= 100).all() and (first[:n] < 102).all() and (first[n:] >= 200).all() and (first[n:] < 202).all()


def test_picture_mask_and_the_teachers_label_are_mixed_alike(monkeypatch):
    monkeypatch.setattr(ucmt, "weak_view", lambda picture, generator: picture)
    trainer = site(config_of("ucmt", flip=False), pictures())
    # a picture that shows its own mask, and a teacher that sees it
    monkeypatch.setattr(ucmt, "strong_view", lambda picture, *_: (picture > 0.45).float())
    monkeypatch.setattr(Teacher, "__call__", lambda self, x: torch.where(x * 0.25 + 0.5 > 0.45, 5.0, -5.0))
    trainer.losses((trainer.labelled, trainer.unlabelled), draw(), LATE)
    mixed, n = trainer.objective._mixed, len(trainer.labelled)
    assert mixed.n_labelled == n and mixed.target.shape == mixed.view[:, 0].shape
    assert torch.equal(mixed.target[n:], mixed.view[n:, 0].long())  # the teacher's
    # bilinear pictures and nearest masks differ at edges
    assert (mixed.target[:n] == mixed.view[:n, 0].long()).float().mean() > 0.97 and mixed.target[:n].any()


def plain_views(monkeypatch):
    monkeypatch.setattr(ucmt, "weak_view", lambda picture, generator: picture)
    monkeypatch.setattr(ucmt, "strong_view", lambda picture, *_: picture)


def test_without_patches_the_second_step_is_the_first_again(monkeypatch):
    plain_views(monkeypatch)
    for top in (0, TOP):
        monkeypatch.setattr(ucmt, "TOP", top)
        trainer = site(config_of("ucmt"), pictures())
        batch = (trainer.labelled, trainer.unlabelled)
        first, second = (trainer.losses(taken, draw(), LATE)[0].item() for taken in (batch, Again(*batch)))
        assert (first == pytest.approx(second, rel=1e-6)) == (top == 0)


def test_three_equal_networks_with_equal_views_learn_from_their_own_labels(monkeypatch):
    plain_views(monkeypatch)
    trainer = site(config_of("ucmt", norm="group"), pictures())
    student = trainer.student
    own = {name: value for name, value in student.state_dict().items() if not name.startswith("second.")}
    student.second.load_state_dict(own)
    _, other, none = parts(trainer)
    monkeypatch.setattr(ucmt, "TOP", 0)  # so that the pictures of the second step are those of the first
    _, figures = trainer.losses((none, other), draw(), LATE)
    with torch.no_grad():
        logits = student(trainer.normalise(trainer.objective._mixed.view))
    wanted = supervised_loss(logits, hard_labels(logits), dice=True).item()
    assert figures["cps"].item() == pytest.approx(wanted) and figures["cmt"].item() == pytest.approx(wanted)


def test_without_weight_two_students_learn_from_masks_alone(monkeypatch):
    plain_views(monkeypatch)
    trainer = site(config_of("ucmt", norm="group", weight_semi=0), pictures())
    monkeypatch.setattr(ucmt, "TOP", 0)
    loss, figures = trainer.losses((trainer.labelled, trainer.unlabelled), draw(), LATE)
    assert set(figures) == {"supervised"} and loss.item() == figures["supervised"].item()
    mixed, n = trainer.objective._mixed, len(trainer.labelled)
    with torch.no_grad():
        x = trainer.normalise(mixed.view[:n])
        costs = [supervised_loss(network(x), mixed.target[:n], dice=True) for network in trainer.objective._students]
    assert loss.item() == pytest.approx(sum(costs).item())
    loss.backward()
    assert all(network.head.weight.grad.abs().max() > 0 for network in trainer.objective._students)


def test_the_loss_is_the_sum_of_its_parts_with_their_weights(monkeypatch):
    trainer = site(config_of("ucmt", weight_semi=3), pictures())
    weight = trainer.objective.unlabelled_weight
    assert weight(0.0) == pytest.approx(3 * WEIGHT * 0.0067379, rel=1e-4)
    assert weight(RAMP) == weight(1.0) == pytest.approx(3 * WEIGHT)
    batch = (trainer.labelled, trainer.unlabelled)
    for taken in (batch, Again(*batch)):
        loss, figures = trainer.losses(taken, draw(), 1.0)
        wanted = figures["supervised"] + 3 * WEIGHT * (figures["cps"] + figures["cmt"])
        assert loss.item() == pytest.approx(wanted.item()) and min(figures.values()) > 0


def test_costs_by_hand(monkeypatch):
    """One pixel's worth of pictures: both students and the teacher differ, without the Dice."""
    trainer = site(config_of("ucmt", dice=False), pictures())
    objective = trainer.objective

    def everywhere(p):
        return logit(p).float().expand(1, 1, 32, 32)

    # first says 0.7, second 0.4, the teacher calls it foreground; nothing is labelled
    answers = [everywhere(0.7), everywhere(0.4)]
    _, figures = objective._costs(answers, torch.ones(1, 32, 32, dtype=torch.long), 0, 1.0)
    # first against the second's background, second against the first's foreground
    assert figures["cps"].item() == pytest.approx(-(math.log(0.3) + math.log(0.4)) / 2)
    assert figures["cmt"].item() == pytest.approx(-(math.log(0.7) + math.log(0.4)) / 2)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_costs_have_the_gradients_of_a_naive_form_and_none_reaches_a_label(classes):
    objective = site(config_of("ucmt", classes=classes, dice=False), pictures(classes=classes)).objective
    z = [torch.randn(3, classes, 2, 2, generator=draw(i), dtype=torch.float64).requires_grad_() for i in (1, 2)]
    target = torch.randint(0, max(2, classes), (3, 2, 2), generator=draw())
    objective._costs(z, target, 1, 1.0)[0].backward()
    got = [value.grad.clone() for value in z]

    def entropy(values, label):
        p = values.sigmoid() if classes == 1 else values.softmax(dim=1)
        p = torch.cat([1 - p, p], dim=1) if classes == 1 else p
        return -p.gather(1, label[:, None]).log().mean()

    hard = [hard_labels(value) for value in z]
    copies = [value.detach().clone().requires_grad_() for value in z]
    naive = sum(entropy(value[:1], target[:1]) for value in copies)
    for k, value in enumerate(copies):
        naive = naive + WEIGHT / 2 * (entropy(value[1:], hard[1 - k][1:]) + entropy(value[1:], target[1:]))
    naive.backward()
    for mine, copy in zip(got, copies, strict=True):
        torch.testing.assert_close(mine, copy.grad, rtol=1e-9, atol=1e-12)


def test_patches_that_are_kept_do_not_outlive_a_round():
    trainer = site(config_of("ucmt", batch=6), pictures())
    trainer.steps_per_round = 3
    for number in (1, 2):
        trainer.train_round(number)
        assert trainer.objective._mixed is None


def test_a_second_step_without_a_first_is_a_first():
    trainer = site(config_of("ucmt"), pictures())
    batch = (trainer.labelled, trainer.unlabelled)
    first = trainer.losses(batch, draw(), LATE)[0].item()
    trainer.objective._mixed = None
    assert trainer.losses(Again(*batch), draw(), LATE)[0].item() == first


# ---- students and teacher ----


def test_the_students_start_apart_and_the_first_is_deployed():
    student = site(config_of("ucmt"), pictures()).student.eval()
    own = {name for name in student.state_dict() if not name.startswith("second.")}
    assert {f"second.{name}" for name in own} == set(student.state_dict()) - own
    assert not torch.equal(student.head.weight, student.second.head.weight)
    x = torch.rand(1, 1, 32, 32, generator=draw())
    with torch.no_grad():
        before, other = student(x), student.second(x)
        student.second.head.bias.fill_(9.0)
        assert torch.equal(student(x), before) and not torch.equal(other, before)


def test_the_teacher_averages_the_parameters_of_the_first_student_and_stays():
    trainer = site(config_of("ucmt"), pictures())
    teacher = trainer.objective.teacher
    assert set(teacher.model.state_dict()) == {
        name for name in trainer.student.state_dict() if not name.startswith("second.")
    }
    assert teacher.model.training and not teacher.follows_buffers
    own = dict(trainer.student.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in teacher.model.named_parameters())
    trainer.step = 9
    before = {name: value.clone() for name, value in teacher.model.named_parameters()}
    for value in own.values():
        value.data.add_(1.0)
    trainer.after_step(0.5)
    for name, value in teacher.model.named_parameters():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * own[name])
    assert not [name for name in trainer.shared() if "teacher" in name]


def test_both_students_are_taught_and_travel():
    config = config_of("ucmt")
    trainer = site(config, pictures())
    before = trainer.shared()
    trainer.train_round(1)
    moved = {name.split(".")[1] for name in changed(before, trainer.shared()) if name.startswith("second.")}
    assert moved == {"stem", "down", "up", "head"}


def test_neither_step_waits_for_its_device(monkeypatch):
    config, train = config_of("ucmt", batch=4), pictures(n=8)
    strict(monkeypatch)
    trainer = Segmenter(config, "a", train, train, device=STRICT)
    assert trainer.steps_per_round == 2
    with watched():
        assert trainer.train_round(1)["loss"] == 1


def test_a_study_with_privacy_is_told_that_a_batch_is_taken_twice():
    reason = why_not(private_config(method={"objective": "ucmt"}), Phase.SEGMENT, 2000)
    assert "ucmt takes every batch for two steps, and a draw of records is paid for once: choose one of dusss" in reason
