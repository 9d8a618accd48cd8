"""The field's mean teacher: its loss by hand, what its teacher sees, and when it is heard."""

from __future__ import annotations

import math

import pytest
import torch

from dusss_core.objectives.mean_teacher_mse import NOISE, NOISE_LIMIT, START, WEIGHT, consistency_loss
from tests.dusss_core.gradients import assert_same_as_reference
from tests.dusss_core.objectives.sites import config_of, draw, loss_of_labelled, pictures, site

NAME = "mean_teacher_mse"


def logit(*p: float) -> torch.Tensor:
    """1 x 1 x 1 x W logits."""
    return torch.tensor(p, dtype=torch.float64).logit()[None, None, None]


def test_the_consistency_of_two_probabilities_by_hand():
    assert consistency_loss(logit(0.7), logit(0.4)).item() == pytest.approx(0.09)
    # of two complementary channels it is the same
    student, teacher = (torch.tensor([[1 - p, p]]).log()[:, :, None, None] for p in (0.7, 0.4))
    assert consistency_loss(student, teacher).item() == pytest.approx(0.09)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_consistency_has_the_gradients_of_a_naive_one_and_none_for_the_teacher(classes):
    def naive(student, teacher):
        total = 0.0
        for z, target in zip(student, teacher.detach(), strict=True):
            for y in range(z.shape[1]):
                for x in range(z.shape[2]):
                    p, q = (
                        1 / (1 + (-v[:, y, x]).exp()) if classes == 1 else v[:, y, x].exp() / v[:, y, x].exp().sum()
                        for v in (z, target)
                    )
                    total = total + ((p - q) ** 2).sum()
        return total / student.numel()

    assert_same_as_reference(
        consistency_loss, naive, *(2 * torch.randn(2, 2, classes, 3, 2, generator=draw(), dtype=torch.float64))
    )


def test_the_teacher_averages_parameters_alone_and_normalises_with_its_own_batch():
    trainer = site(config_of(NAME), pictures())
    teacher = trainer.objective.teacher
    assert teacher.model.training
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    with torch.no_grad():
        for value in trainer.student.state_dict().values():
            value.add_(1)
    trainer.objective.after_step(step=3, share_done=0.5)  # alpha = 1 - 1/4
    buffers = {name for name, _ in trainer.student.named_buffers()}
    assert buffers
    for name, value in teacher.model.state_dict().items():
        assert torch.allclose(value.float(), before[name].float() + (0 if name in buffers else 0.25), atol=1e-6), name
    # a training step moves its running statistics by its own pictures
    trainer.losses((trainer.labelled, trainer.unlabelled), draw(), 0.5)
    counts = [value for name, value in teacher.model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert [int(count) for count in counts] == [1] * len(counts)


def test_the_teacher_sees_the_students_unlabelled_pictures_with_bounded_noise(monkeypatch):
    trainer = site(config_of(NAME), pictures())
    seen = {}
    for name, network in (("student", trainer.student), ("teacher", trainer.objective.teacher.model)):
        network.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, inputs[0].clone()))
    batch = trainer.labelled, trainer.unlabelled
    trainer.losses(batch, draw(), 0.5)
    noise = seen["teacher"] - seen["student"][len(batch[0]) :]
    assert noise.abs().max().item() == pytest.approx(NOISE_LIMIT, abs=1e-6)  # 4.6 % of them lie beyond it
    clipped = NOISE * 0.9594  # standard deviation of a normal that is clipped at twice its own
    assert noise.std().item() == pytest.approx(clipped, rel=0.03) and abs(noise.mean().item()) < 0.005


def test_the_teacher_is_heard_after_a_while_and_ever_more():
    trainer = site(config_of(NAME, weight_semi=2), pictures())
    weight = trainer.objective.unlabelled_weight
    assert weight(0) == weight(START - 1e-6) == 0
    assert weight(START) == pytest.approx(2 * WEIGHT * math.exp(-5 * (1 - START) ** 2))
    assert weight(0.5) == pytest.approx(2 * WEIGHT * math.exp(-5 / 4)) and weight(1) == 2 * WEIGHT
    batch = trainer.labelled, trainer.unlabelled
    assert "consistency" not in trainer.losses(batch, draw(), START - 1e-6)[1]
    loss, figures = trainer.losses(batch, draw(), 1.0)
    assert figures["consistency"] > 0
    assert loss.item() == pytest.approx(figures["supervised"] + 2 * WEIGHT * figures["consistency"])


def test_on_labelled_pictures_it_is_supervised_training():
    assert loss_of_labelled(NAME) == loss_of_labelled("supervised")
