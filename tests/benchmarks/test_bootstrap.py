"""The interval of a difference between two cells is over runs, not over pictures alone."""

from __future__ import annotations

import time

import numpy as np
import pytest

from benchmarks.grid.bootstrap import DRAWS, paired_difference


def runs(differences, pictures=500, spread=20.0, seed=0):
    """Figures of a pair of cells for each seed: `differences` apart in the mean."""
    random = np.random.default_rng(seed)
    pairs = []
    for difference in differences:
        b, noise = random.uniform(30, 90, pictures), random.normal(0, spread, pictures)
        pairs.append((b + noise - noise.mean() + difference, b))
    return pairs


@pytest.mark.parametrize("crossed", [False, True])
def test_a_difference_that_all_seeds_have_has_an_interval_without_zero(crossed):
    mean, (low, high), seeds = paired_difference(runs([3.0, 3.0, 3.0]), crossed=crossed)
    assert mean == pytest.approx(3.0) and seeds == 3
    assert 0 < low < 3 < high < 6


@pytest.mark.parametrize("crossed", [False, True])
def test_noise_between_seeds_is_no_difference_however_sure_the_pictures_are(crossed):
    from scipy.stats import wilcoxon

    pairs = runs([5.0, -2.0, 3.0], spread=4.0)
    over_pictures = np.concatenate([a - b for a, b in pairs])
    assert wilcoxon(over_pictures, alternative="greater").pvalue < 1e-20
    low, high = paired_difference(pairs, crossed=crossed).interval
    assert low < 0 < high


def test_one_seed_has_a_difference_and_no_interval():
    assert paired_difference(runs([3.0])) == (pytest.approx(3.0), None, 1)


def test_what_pictures_have_in_common_over_the_seeds_does_not_average_out_where_they_are_the_same():
    a, b = runs([0.0])[0]
    same = [(a, b)] * 3

    def width(crossed):
        low, high = paired_difference(same, crossed=crossed).interval
        return high - low

    # the mean's standard deviation is that of one run's pictures, and by the root of three less where they are others
    assert width(crossed=True) == pytest.approx(2 * 1.96 * 20 / np.sqrt(500), rel=0.1)
    assert width(crossed=True) / width(crossed=False) == pytest.approx(np.sqrt(3), rel=0.05)


def test_the_interval_covers_what_other_runs_would_give_as_often_as_few_seeds_allow():
    """True mean 1, seeds apart by a standard deviation of 2: three seeds cover it in about three of four cases."""
    random = np.random.default_rng(3)
    covered = []
    for case in range(200):
        pairs = runs(random.normal(1, 2, 3), pictures=40, spread=0.5, seed=case)
        low, high = paired_difference(pairs, draws=1000).interval
        covered.append(low < 1 < high)
    assert 0.65 < np.mean(covered) < 0.9


def test_the_same_figures_give_the_same_interval_quickly():
    pairs, started = runs([1.0, 2.0, 3.0], pictures=1000), time.perf_counter()
    assert paired_difference(pairs) == paired_difference(pairs)
    assert DRAWS >= 10_000 and time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("pairs", "crossed"),
    [([], False), ([([1.0, 2.0], [1.0])], False), ([([1.0], [2.0]), ([1.0, 2.0], [2.0, 3.0])], True)],
)
def test_figures_that_make_no_pairs_are_refused(pairs, crossed):
    with pytest.raises(ValueError):
        paired_difference(pairs, crossed=crossed)


def test_seeds_with_pictures_of_their_own_may_have_more_of_them():
    pairs = [*runs([2.0], pictures=50), *runs([4.0], pictures=80)]
    mean, (low, high), seeds = paired_difference(pairs)
    assert mean == pytest.approx(3.0) and low < 3 < high and seeds == 2
