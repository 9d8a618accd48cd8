"""LViT's semi-supervised training: values by hand, and its limit cases."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dusss_core.losses import probabilities
from dusss_core.models.words import Words
from dusss_core.objectives import lvit
from dusss_core.objectives.lvit import BETA, LV, Bank, balanced_loss, template_costs, templates_of
from tests.dusss_core.conftest import FakeBank, make_config
from tests.dusss_core.gradients import assert_same_as_reference
from tests.dusss_core.objectives.sites import changed, config_of, draw, parts, pictures, site, trained


def logit(*probability: float) -> torch.Tensor:
    return torch.tensor(probability, dtype=torch.float64).logit()


# ---- losses ----


def test_a_prediction_of_half_of_its_template_costs_1_minus_the_cosine_of_45_degrees():
    prediction, template = torch.tensor([[[[40.0, -40.0]]]]), torch.ones(1, 1, 1, 2)
    assert template_costs(prediction, template).item() == pytest.approx(1 - 1 / math.sqrt(2)) == pytest.approx(0.292893)


def test_of_several_classes_the_foreground_is_joined():
    p = torch.tensor([0.4, 0.35, 0.25])
    logits = torch.stack([p.log(), torch.tensor([0.9, 0.05, 0.05]).log()], dim=1)[None, :, None]
    joined = logit(0.6, 0.1).float().reshape(1, 1, 1, 2)
    template = torch.tensor([[[[1.0, 0.5]]]])
    torch.testing.assert_close(template_costs(logits, template), template_costs(joined, template))


def test_the_template_cost_has_the_gradient_of_its_equation():
    generator = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(2, 1, 3, 2, generator=generator), torch.rand(2, 1, 3, 2, generator=generator)

    def reference(logits, masks):
        p, c = logits.sigmoid().flatten(1), masks.flatten(1)
        return 1 - (p * c).sum(1) / (p.square().sum(1).sqrt() * c.square().sum(1).sqrt())

    assert_same_as_reference(template_costs, reference, logits, masks)


def test_balanced_cross_entropy_weighs_one_pixel_of_four_as_much_as_the_other_three():
    logits = logit(0.5, 0.1, 0.1, 0.1).reshape(1, 1, 2, 2)
    mask = torch.tensor([[[1, 0], [0, 0]]])
    entropy = (math.log(2) - math.log(0.9)) / 2
    dice = 1 - (2 * 0.5) / (0.5**2 + 3 * 0.1**2 + 1)
    assert balanced_loss(logits, mask).item() == pytest.approx((entropy + dice) / 2, abs=1e-4)


def test_balanced_cross_entropy_of_one_kind_of_pixels_is_finite():
    for value in (0, 1):
        assert math.isfinite(balanced_loss(torch.zeros(1, 1, 2, 2), torch.full((1, 2, 2), value)).item())


def test_the_balanced_loss_has_the_gradient_of_its_equation():
    mask = torch.tensor([[[1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 0, 1]]])

    def reference(logits):
        p, y = logits.sigmoid()[:, 0], mask.double()
        entropy = -(p.log()[y > 0].mean() + (1 - p).log()[y == 0].mean()) / 2
        dice = (2 * (p * y).sum((1, 2)) + 1e-5) / (p.square().sum((1, 2)) + y.sum((1, 2)) + 1e-5)
        return ((1 - dice).mean() + entropy) / 2

    assert_same_as_reference(
        lambda z: balanced_loss(z, mask), reference, torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    )


# ---- the bank ----


def visited(bank: Bank, answers: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The bank's answer after visits of one record, n x 1 x H x W."""
    for now in answers:
        mean = bank.visit(np.array([1]), now[None], 3, generator)
    return mean


def test_a_bank_is_the_mean_of_its_first_hundred_visits_within_what_eight_bits_keep():
    generator = torch.Generator().manual_seed(0)
    answers = torch.rand(60, 1, 16, 16, generator=generator)
    error = visited(Bank(), answers, draw())[0] - answers.mean(0)
    # rounded at random each time: no bias, and about a hundredth each
    assert error.abs().max() < 0.05 and abs(error.mean()) < 2e-3


def test_a_bank_goes_on_where_rounding_to_the_nearest_would_stand_still():
    """From the 40th visit on a change of 0.05 is less than half of a step of 1 / 255."""
    bank, generator = Bank(), draw()
    visited(bank, torch.full((40, 1, 16, 16), 0.5), generator)
    mean = visited(bank, torch.full((40, 1, 16, 16), 0.55), generator).mean().item()
    assert mean == pytest.approx(0.525, abs=3e-3)


def test_the_first_visit_is_all_that_a_bank_knows_and_beta_bounds_what_it_holds_on_to():
    bank = Bank()
    assert torch.equal(visited(bank, torch.full((1, 1, 2, 2), 0.25), draw()), torch.full((1, 1, 2, 2), 0.25))
    bank = Bank(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 10**6, 0]))
    assert visited(bank, torch.ones(1, 1, 8, 8), draw()).mean().item() == pytest.approx(1 - BETA)


def test_a_bank_of_other_records_is_begun_anew():
    bank = Bank(torch.full((2, 1, 8, 8), 255, dtype=torch.uint8), torch.tensor([5, 5]))
    assert visited(bank, torch.zeros(1, 1, 8, 8), draw()).max() == 0
    assert bank.state()["visits"].tolist() == [0, 1, 0]


def test_a_round_leaves_the_state_that_it_was_begun_from_as_it_was():
    """A round whose loss is not finite is made again from it."""
    config, train = config_of("lvit", epochs=2), pictures()
    first, again = site(config, train), site(config, train)
    first.train_round(1)
    state = first.private()
    before = {name: value.clone() for name, value in state.items()}
    again.load_private(state)
    again.train_round(2)
    assert "objective.epi" in state and not changed(before, state)


def test_outside_a_moved_template_there_is_background_whatever_comes_into_the_picture(monkeypatch):
    seen = []

    def costs(logits, masks):
        seen.append(masks)
        return template_costs(logits, masks)

    monkeypatch.setattr(lvit, "template_costs", costs)
    train = pictures()
    full = replace(train, masks=np.ones_like(train.masks))
    trainer = site(config_of("lvit", outside="edge"), full)
    trainer.losses(parts(trainer)[:2], draw(), 0.5)
    assert seen and all((masks.amax((1, 2, 3)) > 0.99).all() and (masks == 0).any() for masks in seen)


def test_what_a_bank_remembers_is_the_answer_to_the_picture_as_it_is_and_its_sentence():
    trainer = site(config_of("lvit"), pictures())
    _, other, _ = parts(trainer)
    buffers = {name: value.clone() for name, value in trainer.student.named_buffers()}
    trainer.student.train()
    remembered = trainer.objective._visit(np.concatenate([other[:3], other[:1]]), draw())
    assert trainer.student.training
    assert all(torch.equal(value, buffers[name]) for name, value in trainer.student.named_buffers())
    trainer.student.eval()
    tokens, mask = FakeBank().features(torch.from_numpy(trainer.train.sentence[other[:3]]))
    with torch.no_grad():
        logits = trainer.student(trainer.normalise(trainer.pictures(other[:3])), Words(tokens, mask))
    torch.testing.assert_close(remembered[:3], probabilities(logits))
    assert torch.equal(remembered[3], remembered[0])
    # drawn twice in a batch, it is one visit
    assert trainer.objective.state()["visits"].sum() == 3


# ---- the templates ----


def test_a_template_is_the_mean_mask_of_the_labelled_pictures_that_have_the_closest_sentence():
    trainer = site(config_of("lvit"), pictures(n=12, labelled=5))
    made, train = templates_of(trainer), trainer.train
    for sentence in (0, 1):
        own = [i for i in range(5) if train.sentence[i] == sentence]
        mean = torch.from_numpy((train.masks[own] > 0).mean(0)).float()
        torch.testing.assert_close(made.masks[made.closest[sentence], 0], mean)


def test_templates_are_the_same_however_many_masks_are_read_at_a_time(monkeypatch):
    trainer = site(config_of("lvit"), pictures())
    whole = templates_of(trainer)
    monkeypatch.setattr(lvit, "AT_ONCE", 1)
    assert torch.equal(templates_of(trainer).masks, whole.masks) and len(trainer.labelled) > 2


def test_a_sentence_that_no_labelled_picture_has_gets_the_closest_that_one_has():
    train = pictures(n=12, labelled=5)
    only = replace(train, labelled=train.labelled & (train.sentence == 0))
    made = templates_of(site(config_of("lvit"), only))
    assert len(made.masks) == 1 and made.closest.tolist() == [0, 0]
    nobody = replace(train, sentence=np.where(train.labelled, -1, train.sentence))
    assert templates_of(site(config_of("lvit"), nobody)) is None


def test_masks_that_may_not_be_trained_on_teach_nothing():
    train = pictures()
    hidden = replace(train, masks=np.where(train.labelled[:, None, None], train.masks, 1 - train.masks))
    config = config_of("lvit")
    assert not changed(trained(config, train), trained(config, hidden))


def test_a_trainer_that_is_handed_on_takes_the_next_sites_masks():
    trainer = site(config_of("lvit"), pictures())
    mine = trainer.objective._templates
    assert trainer.objective._templates is mine
    other = site(config_of("lvit"), replace(pictures(), masks=1 - pictures().masks))
    trainer.objective.host = other
    assert not torch.equal(trainer.objective._templates.masks, mine.masks)


# ---- the whole ----


def on_lvit(method: dict, **segment):
    values = {"rounds": 2, "batch": 8, "optimizer": {"lr": 1e-2}, **segment}
    return make_config(method=method, student={"width": 4, "network": "lvit"}, segment=values)


def test_without_sentences_and_bank_it_is_supervised_training_of_its_network():
    silent = replace(pictures(labelled=12), sentence=np.full(12, -1))
    told = trained(on_lvit({"objective": "lvit"}), silent)
    assert not changed(told, trained(on_lvit({"objective": "supervised_with_text"}), silent))
    assert not changed(told, trained(on_lvit({"preset": "supervised"}), silent))


def test_with_sentences_it_is_not():
    train = pictures(labelled=12)
    assert changed(trained(on_lvit({"objective": "lvit"}), train), trained(on_lvit({"preset": "supervised"}), train))


@pytest.mark.parametrize("name", ["lvit", "lvit_balanced"])
def test_its_figures_add_up(name):
    trainer = site(config_of(name, weight_semi=0.5), pictures())
    labelled, other, _ = parts(trainer)
    loss, found = trainer.losses((labelled, other), draw(), 1.0)
    expected = found["supervised"] + 0.5 * (found["pseudo"] + LV * found["lv"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and found["lv"] > 0


def test_records_without_a_sentence_have_no_template():
    train = pictures()
    some = replace(train, sentence=np.where(np.arange(12) < 8, train.sentence, -1))
    trainer = site(config_of("lvit"), some)
    labelled, other, _ = parts(trainer)
    told, silent = other[other < 8], other[other >= 8]
    _, there = trainer.objective._closest(other)
    assert there.tolist() == [1.0] * len(told) + [0.0] * len(silent)
    _, found = trainer.losses((labelled, silent), draw(), 0.9)
    assert found["lv"] == 0 and found["pseudo"] > 0


def test_a_bank_of_other_records_is_forgotten_though_they_are_as_many():
    config, train = config_of("lvit", epochs=2), pictures()
    first = site(config, train)
    first.train_round(1)
    state = first.private()
    others = replace(train, ids=tuple(f"other{i}" for i in range(len(train))))
    for of, kept in ((train, True), (others, False)):
        again = site(config, of)
        again.load_private(state)
        assert bool(again.objective.state()) == kept
    earlier = {name: value for name, value in state.items() if name != "objective.records"}
    again.load_private(earlier)
    assert again.objective.state()["visits"].equal(state["objective.visits"])
