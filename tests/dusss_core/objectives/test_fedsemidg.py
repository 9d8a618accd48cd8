"""FedSemiDG's pair of teachers: their agreement by hand, whose doubt sets the threshold, and what stays for a round."""

from __future__ import annotations

import math

import pytest
import torch

from dusss_core.objectives import fedsemidg
from dusss_core.objectives.fedsemidg import DECAY, UNKNOWN, agreed, entropy, quantile
from tests.dusss_core.objectives.sites import config_of, draw, loss_of_labelled, parts, pictures, site

NAME = "fedsemidg"


def logit(*p: float) -> torch.Tensor:
    """1 x 1 x 1 x W logits."""
    return torch.tensor(p, dtype=torch.float64).logit()[None, None, None]


def test_entropies_by_hand():
    assert entropy(logit(0.5, 0.9)).flatten().tolist() == pytest.approx([math.log(2), 0.325083])
    assert entropy(torch.zeros(1, 4, 1, 1)).item() == pytest.approx(math.log(4))
    # of two complementary channels it is that of one, and a sure pixel has none
    two = torch.tensor([0.1, 0.9]).log()[None, :, None, None]
    assert entropy(two).item() == pytest.approx(0.325083, abs=1e-6)
    assert entropy(torch.tensor([[[[200.0, -200.0]]]])).tolist() == [[[0.0, 0.0]]]


def test_two_teachers_by_hand():
    label, doubt = agreed(logit(0.9, 0.4), logit(0.3, 0.5))
    assert label.tolist() == [[[1, 0]]]  # means of 0.6 and 0.45
    assert doubt[0, 0, 0].item() == pytest.approx((0.325083 + 0.610864) / 2, abs=1e-6)
    # equal teachers are one teacher
    several = torch.randn(2, 3, 4, 4, generator=draw())
    label, doubt = agreed(several, several)
    assert torch.equal(label, several.argmax(dim=1))
    torch.testing.assert_close(doubt, entropy(several))


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 1.0), (0.15, 2.0), (0.5, 5.0), (0.51, 6.0), (1.0, 10.0)])
def test_a_quantile_by_hand(share, wanted):
    assert quantile(torch.arange(10.0, 0.0, -1.0).view(2, 5), share) == wanted


@pytest.mark.parametrize(("share_done", "share"), [(0.0, 0.15), (0.5, 0.225), (1.0, 0.3)])
def test_the_threshold_follows_the_students_doubt_on_labelled_pictures(share_done, share, monkeypatch):
    trainer = site(config_of(NAME), pictures())
    asked = []
    monkeypatch.setattr(
        fedsemidg, "quantile", lambda values, share: asked.append((values.shape, share)) or torch.tensor(0.4)
    )
    labelled, other, none = parts(trainer)
    _, figures = trainer.losses((labelled, other), draw(), share_done)
    assert figures["threshold"].item() == pytest.approx(0.4)  # the first one is taken as it is
    trainer.objective.threshold.fill_(0.2)
    _, figures = trainer.losses((labelled, other), draw(), share_done)
    assert figures["threshold"].item() == pytest.approx(DECAY * 0.2 + (1 - DECAY) * 0.4)
    assert asked == [((len(labelled), 32, 32), pytest.approx(share))] * 2
    # a site without labels goes by its teachers' doubt
    trainer.losses((none, other), draw(), share_done)
    assert asked[-1] == ((len(other), 32, 32), pytest.approx(share))


def test_a_site_without_labels_hears_the_least_doubtful_share_of_its_pixels():
    trainer = site(config_of(NAME, norm="group"), pictures(labelled=0))
    trainer.objective.before_round()
    _, other, none = parts(trainer)
    _, figures = trainer.losses((none, other), draw(), 1.0)
    assert figures["confident"].item() == pytest.approx(0.3, abs=0.01)


def test_the_global_model_of_the_round_stays_a_teacher_until_the_next():
    trainer = site(config_of(NAME), pictures())
    came = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    trainer.train_round(1)
    fixed, own = trainer.objective.fixed.model.state_dict(), trainer.objective.teacher.model.state_dict()
    assert all(torch.equal(fixed[name], value) for name, value in came.items())
    moved = {name for name, value in trainer.student.named_parameters() if not torch.equal(value, came[name])}
    assert moved and all(not torch.equal(own[name], came[name]) for name in moved)
    new = {name: value + 1 for name, value in trainer.shared().items() if value.is_floating_point()}
    trainer.load_shared({**trainer.shared(), **new})
    trainer.train_round(2)
    fixed, own = trainer.objective.fixed.model.state_dict(), trainer.objective.teacher.model.state_dict()
    assert all(torch.equal(fixed[name], value) for name, value in new.items())
    # the other one is the site's own: on its way from the models before
    assert all(not torch.equal(own[name], new[name]) for name in moved)


def test_the_threshold_stays_at_the_site_and_a_new_phase_starts_without_one():
    trainer = site(config_of(NAME), pictures())
    assert trainer.objective.threshold == UNKNOWN
    trainer.train_round(1)
    threshold = trainer.objective.threshold.item()
    assert threshold > 0 and trainer.private()["objective.threshold"].item() == pytest.approx(threshold)
    assert not any("threshold" in name for name in trainer.shared())
    resumed = site(config_of(NAME), pictures())
    resumed.load_private(trainer.private())
    assert resumed.objective.threshold.item() == threshold
    trainer.step = 0
    trainer.load_shared(trainer.shared())
    assert trainer.objective.threshold == UNKNOWN


@pytest.mark.parametrize(("share_done", "ramp"), [(0.0, math.exp(-5)), (0.1, math.exp(-5 / 4)), (0.2, 1), (1.0, 1)])
def test_where_no_mask_holds_it_the_teachers_come_in_over_the_ramp_up(share_done, ramp):
    trainer = site(config_of(NAME, weight_semi=0.5, rampup=0.2), pictures(labelled=0))
    assert trainer.pace(share_done) == pytest.approx(0.5 * ramp)


def test_both_teachers_count_as_memory_that_is_kept():
    trainer = site(config_of(NAME), pictures())
    network = sum(value.nbytes for value in trainer.student.state_dict().values())
    held = sum(value.nbytes for value in trainer.objective.kept())
    assert held == 2 * network + trainer.objective.threshold.nbytes


def test_the_loss_is_that_of_masks_and_of_pixels_of_little_doubt_by_their_weight():
    trainer = site(config_of(NAME, norm="group", weight_semi=3), pictures())
    trainer.objective.before_round()
    labelled, other, _ = parts(trainer)
    loss, figures = trainer.losses((labelled, other), draw(), 0.0)
    assert figures["semi"] > 0 and 0 < figures["confident"] < 1
    assert loss.item() == pytest.approx(figures["supervised"].item() + 3 * figures["semi"].item())


def test_on_labelled_pictures_it_is_supervised_training():
    assert loss_of_labelled(NAME) == loss_of_labelled("supervised")
