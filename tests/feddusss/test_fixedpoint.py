"""Fixed point: sums are exact, a mean errs by at most 2^-31, and what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest

from feddusss.secagg.fixedpoint import FRACTION_BITS, OutOfRange, decode, encode, largest

STEP = 2.0**-FRACTION_BITS


def test_a_weighted_mean_errs_by_at_most_half_a_step():
    draw = np.random.default_rng(1)
    weights = [1, 7, 1000, 123_456]
    values = [draw.normal(scale=scale, size=5000) for scale in (1e-6, 1.0, 3.0, 20.0)]
    total = sum(encode(v, w, len(weights)) for v, w in zip(values, weights, strict=True))
    mean = decode(total, sum(weights))
    exact = sum(w * v for v, w in zip(values, weights, strict=True)) / sum(weights)
    assert np.abs(mean - exact).max() <= STEP / 2 * (1 + 1e-3)
    assert np.abs(mean - exact).max() > STEP / 100  # the bound is of the right size


def test_whole_numbers_are_exact():
    counts = [np.array([3, 0, 10**6]), np.array([5, 2, 10**6 + 4])]
    total = sum(encode(c, 1, 2, bits=0) for c in counts)
    assert decode(total, 1, bits=0).tolist() == [8, 2, 2 * 10**6 + 4]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("weight", "members"), [(1, 2), (1000, 3), (10**8, 10), (12_345, 97)])
def test_the_largest_numbers_of_all_sites_together_do_not_wrap(weight, members, sign):
    value = sign * largest(weight, members) * (1 - 1e-9)
    total = np.zeros(1, dtype=np.uint64)
    for _ in range(members):
        total += encode(np.array([value]), weight, members)
    assert decode(total, weight * members)[0] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_what_does_not_fit_is_refused_and_not_clipped(value):
    with pytest.raises(OutOfRange):
        encode(np.array([0.0, value]), 1, 3)


def test_a_number_just_above_the_limit_is_refused():
    with pytest.raises(OutOfRange, match="larger than"):
        encode(np.array([-largest(1000, 3) * 1.0001]), 1000, 3)


def test_the_stated_range_is_wide():
    assert largest(weight=10_000, members=10) > 40_000
    assert largest(weight=10**6, members=100) > 40


def test_a_sum_with_a_mask_left_in_it_is_noticed():
    draw = np.random.default_rng(2)
    mask = draw.integers(0, 2**64, 100, dtype=np.uint64)
    with pytest.raises(OutOfRange, match="masks did not cancel"):
        decode(encode(np.zeros(100), 1, 3) + mask, 3)
