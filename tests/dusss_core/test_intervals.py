"""What stands behind figures: as by hand, with patients held together, and silent about single pictures."""

from __future__ import annotations

import numpy as np
import pytest

from dusss_core.intervals import Bootstrap, interval, numbered, spread, without_spread
from dusss_core.metrics import Scores, per_image, pixel_counts
from tests.dusss_core.test_metrics import blobs


def figures(prediction, truth, classes=1, groups=None):
    each = per_image(prediction, truth, classes)
    return spread(
        each, pixel_counts(prediction, truth, classes), np.arange(len(truth)) if groups is None else np.array(groups)
    )


def of_dice(dice, groups=None):
    """Figures of pictures of which the Dice alone is known."""
    dice = np.asarray(dice, dtype=np.float64)
    groups = np.arange(len(dice)) if groups is None else np.array(groups)
    return spread({"dice": dice}, np.ones((len(dice), 1, 3), dtype=np.int64), groups)


def test_pooled_dice_counts_the_pixels_of_all_pictures_together():
    prediction, truth = blobs(12, 1), blobs(12, 2)
    truth[3] = 0
    found = figures(prediction, truth)
    overlap = sum(int(((p > 0) & (t > 0)).sum()) for p, t in zip(prediction, truth, strict=True))
    assert found["dice_pooled"] == pytest.approx(2 * overlap / ((prediction > 0).sum() + (truth > 0).sum()))
    assert found["dice_pooled"] != pytest.approx(per_image(prediction, truth, 1)["dice"].mean(), abs=1e-3)
    assert found["n_positive"] == 11


def test_every_class_has_its_own_pooled_dice_and_its_pictures():
    prediction, truth = blobs(10, 3, classes=2), blobs(10, 4, classes=2)
    truth[truth == 3] = 0
    truth[:4][truth[:4] == 2] = 0
    found = figures(prediction, truth, classes=3)  # class 3 is nowhere
    for index in (1, 2):
        p, t = prediction == index, truth == index
        assert found[f"dice_pooled_{index}"] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))
        assert found[f"n_positive_{index}"] == sum(t.any((1, 2)))
    assert "dice_pooled_3" not in found and found["n_positive_3"] == 0
    assert found["dice_pooled"] == pytest.approx((found["dice_pooled_1"] + found["dice_pooled_2"]) / 2)


def test_an_interval_is_the_middle_of_what_draws_with_replacement_give():
    dice = np.random.default_rng(1).uniform(0.2, 0.9, 200)
    found = of_dice(dice)
    # far from a border the mean of many is normal
    reach = 1.96 * dice.std() / np.sqrt(200)
    assert found["dice_low"] == pytest.approx(dice.mean() - reach, abs=0.004)
    assert found["dice_high"] == pytest.approx(dice.mean() + reach, abs=0.004)
    assert of_dice(dice) == found


def test_pictures_of_one_patient_are_drawn_together():
    dice = np.repeat(np.linspace(0.1, 0.9, 12), 10)
    alone, together = of_dice(dice), of_dice(dice, np.repeat(np.arange(12), 10))
    assert together["dice_high"] - together["dice_low"] > 2 * (alone["dice_high"] - alone["dice_low"])


@pytest.mark.parametrize("groups", [range(9), [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 7]])
def test_no_interval_of_so_few_patients_that_its_ends_could_be_ones_own(groups):
    found = of_dice(np.linspace(0.1, 0.9, len(groups)), groups)
    assert not [name for name in found if name.endswith(("_low", "_high"))]
    assert "dice_low" in of_dice(np.linspace(0.1, 0.9, 10))


@pytest.mark.parametrize(
    ("dice", "bins"),
    [
        ([0.1] * 5 + [0.3] * 5 + [0.5] * 5 + [0.7] * 5 + [0.9] * 5, {0: 5, 20: 5, 40: 5, 60: 5, 80: 5}),
        ([0.1] * 1 + [0.7] * 6 + [0.9] * 8, {0: 7, 80: 8}),
        ([0.9] * 8, {0: 0, 20: 0, 40: 0, 60: 0, 80: 8}),
        ([0.1] * 6 + [0.95] * 3, {0: 9}),
        ([0.5] * 4 + [1.0] * 2, {0: 0, 20: 0, 40: 6}),
        ([0.2] * 5 + [0.6] * 5, {0: 0, 20: 5, 40: 0, 60: 5, 80: 0}),
        ([0.5] * 4, {}),
    ],
)
def test_a_bin_of_the_distribution_is_empty_or_has_five_pictures(dice, bins):
    found = of_dice(dice)
    assert {int(name.removeprefix("dice_from_")): n for name, n in found.items() if "_from_" in name} == bins


def test_no_bin_is_small_whatever_the_pictures_are():
    draw = np.random.default_rng(2)
    for _ in range(300):
        dice = draw.beta(*draw.uniform(0.3, 3, 2), size=draw.integers(1, 40))
        numbers = [n for name, n in of_dice(dice).items() if "_from_" in name]
        assert all(n == 0 or n >= 5 for n in numbers)
        assert sum(numbers) == (len(dice) if len(dice) >= 5 else 0)


def test_means_alone_are_left_without_what_stands_behind_them():
    prediction, truth = blobs(12, 1, classes=2), blobs(12, 2, classes=2)
    scores = Scores(2, pixels=True)
    scores.add(prediction, truth)
    means = scores.mean()
    behind = spread(scores.per_image(), scores.pixels(), np.arange(12))
    told = {f"text_{name}": value for name, value in {**means, **behind}.items()}
    kept = {f"text_{name}": value for name, value in means.items()}
    assert without_spread({**means, **behind, **told}) == {**means, **kept}


def test_draws_are_the_same_in_pieces_and_at_once(monkeypatch):
    values = np.random.default_rng(3).uniform(size=(50, 2, 3))
    whole = Bootstrap(np.arange(50)).sums(values)
    monkeypatch.setattr("dusss_core.intervals._AT_ONCE", 150)
    assert np.allclose(Bootstrap(np.arange(50)).sums(values), whole, rtol=1e-12)
    assert whole.shape == (2000, 2, 3)


def test_draws_without_the_figure_are_left_out():
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0) and interval(np.array([np.nan])) is None
    assert numbered(["b", "a", "b"]).tolist() == [0, 1, 0]
