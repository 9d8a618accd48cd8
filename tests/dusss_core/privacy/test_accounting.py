"""What is spent is never told too small: known values, a numerical integral, hostile settings."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dusss_core.privacy import accounting
from dusss_core.privacy.accounting import (
    MOST_ROUNDS,
    Budget,
    coalesce,
    epsilon,
    epsilon_prv,
    fits,
    plan,
    rounds_left,
)
from dusss_core.privacy.charge import Charge

KNOWN = Charge(steps=1000, sample_rate=0.05, noise_multiplier=1.0)


def test_the_known_values_are_found():
    assert epsilon([KNOWN], 1e-5) == pytest.approx(11.98, abs=0.005)
    assert epsilon_prv([KNOWN], 1e-5) == pytest.approx(11.00, abs=0.02)
    assert epsilon([], 1e-5) == 0 and epsilon_prv([], 1e-5) == 0


def hockey_stick(epsilon, mu):
    """Delta at `epsilon` of N(mu, 1) against N(0, 1), by a numerical integral."""
    x = np.linspace(-40, mu + 40, 2_000_001)
    first, second = (np.exp(-((x - mean) ** 2) / 2) / math.sqrt(2 * math.pi) for mean in (mu, 0))
    return np.maximum(first - math.exp(epsilon) * second, 0).sum() * (x[1] - x[0])


@pytest.mark.parametrize("records", [1, 3])
@pytest.mark.parametrize(("steps", "noise"), [(1, 4.0), (100, 20.0), (20, 2.685), (7, 3.0)])
def test_steps_of_all_records_are_counted_exactly(steps, noise, records):
    mu = records * math.sqrt(steps) / noise
    found = epsilon([Charge(steps, 1.0, noise)], 1e-5, records)
    assert 0.999e-5 < hockey_stick(found, mu) <= 1e-5
    # never more than the best of all orders of Renyi divergence, which at order a is T a / (2 s^2)
    orders = np.linspace(1.01, 500, 200_000)
    exact = steps * orders / (2 * noise**2)
    best = (exact + np.log1p(-1 / orders) - (np.log(1e-5) + np.log(orders)) / (orders - 1)).min()
    assert records > 1 or 0.8 * best < found < best


def test_a_mixture_of_noises_of_all_records_is_exact_and_one_drawn_step_leaves_it_to_renyi():
    whole = [Charge(3, 1.0, 4.0), Charge(5, 1.0, 2.5)]
    assert hockey_stick(epsilon(whole, 1e-5), math.sqrt(3 / 4.0**2 + 5 / 2.5**2)) == pytest.approx(1e-5, rel=1e-3)
    drawn = [*whole, Charge(1, 0.999, 1000.0)]
    assert epsilon(whole, 1e-5) < epsilon(drawn, 1e-5)
    assert accounting._exact(drawn, 1e-5, 1) == math.inf


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("noise", [0.4, 0.8, 2.0, 20.0])
def test_no_order_is_below_the_integral_that_it_stands_for(rate, noise):
    found = accounting._divergence(rate, noise)
    for order in (2.0, 2.3, 3.7, 4.9, 8.5, 16.0, 32.0):
        # log E over N(0, s^2) of ((1 - q) + q exp((2 x - 1) / (2 s^2)))^a
        x = np.linspace(-40 * noise, order + 40 * noise, 400_001)
        log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2))
        log_density = -(x**2) / (2 * noise**2) - math.log(noise * math.sqrt(2 * math.pi))
        log_moment = np.logaddexp.reduce(order * log_ratio + log_density) + math.log(x[1] - x[0])
        at = found[np.abs(accounting.ORDERS - order).argmin()]
        assert log_moment / (order - 1) - 1e-9 <= at <= log_moment / (order - 1) * 1.001 + 1e-9


def test_charges_are_added_up_exactly_whatever_their_order_and_number():
    rounds = [Charge(20, 0.05, 1.0), Charge(10, 0.02, 2.0)] * 30
    assert sorted(coalesce(rounds), key=lambda charge: charge.steps) == [Charge(300, 0.02, 2.0), Charge(600, 0.05, 1.0)]
    assert epsilon(rounds, 1e-5) == epsilon(rounds[::-1], 1e-5) == epsilon(coalesce(rounds), 1e-5)
    # another noise is another mechanism, however near it is
    assert len(coalesce([Charge(1, 0.05, 1.0), Charge(1, 0.05, 1.0000001)])) == 2


def test_more_of_anything_that_costs_never_costs_less():
    base = epsilon([Charge(200, 0.05, 1.0)], 1e-5)
    assert epsilon([Charge(201, 0.05, 1.0)], 1e-5) > base
    assert epsilon([Charge(200, 0.051, 1.0)], 1e-5) > base
    assert epsilon([Charge(200, 0.05, 0.99)], 1e-5) > base
    assert epsilon([Charge(200, 0.05, 1.0)], 1e-6) > base
    assert epsilon([Charge(200, 0.05, 1.0), Charge(1, 1e-6, 1000.0)], 1e-5) >= base


@pytest.mark.parametrize(
    "charge",
    [
        Charge(20, 0.05, math.inf),
        Charge(20, 0.05, math.nan),
        Charge(20, 0.05, 0.0),
        Charge(20, 0.05, -1.0),
        Charge(20, 0.05, 1e-200),
        Charge(20, math.nan, 1.0),
        Charge(20, 0.0, 1.0),
        Charge(20, 1.5, 1.0),
        Charge(-20, 0.05, 1.0),
        Charge(0, 0.05, 1.0),
        Charge(10**30, 0.05, 1.0),
    ],
)
def test_settings_that_bound_nothing_are_infinitely_dear(charge):
    assert epsilon([charge], 1e-5) == math.inf
    # and cannot make what was spent before look cheaper
    assert epsilon([KNOWN, charge], 1e-5) == math.inf
    assert not fits(Budget(1e6, 1e-5), [charge])


def test_tiny_charges_are_never_free():
    # rounding would make a log-moment of 1e-30 negative; ten billion of them must not be a refund
    many = Charge(10**10, 1e-12, 1e6)
    assert epsilon([KNOWN, many], 1e-5) >= epsilon([KNOWN], 1e-5)


def test_a_patient_with_several_records_costs_more_than_their_number_of_times():
    one = [Charge(200, 0.02, 1.5)]
    values = [epsilon(one, 1e-5, k) for k in (1, 2, 3, 5)]
    for k, value in zip((2, 3, 5), values[1:], strict=True):
        assert value > k * values[0]
    # what is claimed for two records follows from what is proven for one, at a smaller delta
    e = values[1] / 2
    assert epsilon(one, 1e-5 / (1 + math.exp(e))) == pytest.approx(e, abs=1e-6)
    assert epsilon(one, 1e-5, 1) == pytest.approx(accounting._group_epsilon(_divergence_of(one), 1e-5, 1))


def test_the_two_ways_to_the_epsilon_of_one_record_agree():
    divergence = _divergence_of([KNOWN])
    low, high = 0.0, 100.0
    proof = np.log1p(-1 / accounting.ORDERS) - np.log(accounting.ORDERS) / (accounting.ORDERS - 1)
    for _ in range(60):
        middle = (low + high) / 2
        proven = (divergence - math.log(1e-5) / (accounting.ORDERS - 1) + proof <= middle).any()
        low, high = (low, middle) if proven else (middle, high)
    assert epsilon([KNOWN], 1e-5) == pytest.approx(high)


@pytest.mark.parametrize("k", [1, 2])
def test_the_rounds_that_are_left_fit_and_one_more_does_not(k):
    budget, charge = Budget(8.0, 1e-5, k), Charge(20, 0.02, 1.5)
    spent = [charge] * 3
    left = rounds_left(budget, spent, charge)
    assert left > 3
    assert fits(budget, spent + [charge] * left) and not fits(budget, spent + [charge] * (left + 1))
    assert rounds_left(budget, spent + [charge] * left, charge) == 0
    assert rounds_left(Budget(8.0, 1e-5), [], Charge(1, 1e-9, 1e5)) == MOST_ROUNDS
    assert rounds_left(budget, [], Charge(1, 0.02, math.nan)) == 0


@pytest.mark.parametrize("k", [1, 3])
def test_a_plan_fits_and_less_noise_does_not(k):
    budget = Budget(8.0, 1e-5, k)
    noise = plan(budget, rounds=30, steps=20, sample_rate=0.05)
    assert fits(budget, [Charge(600, 0.05, noise)])
    assert not fits(budget, [Charge(600, 0.05, noise - 0.002)])
    spent = [Charge(100, 0.05, 1.0)]
    assert plan(budget, 30, 20, 0.05, spent if k == 1 else ()) >= noise


def test_no_plan_fits_into_a_budget_that_is_spent():
    with pytest.raises(ValueError, match="no amount of noise"):
        plan(Budget(1.0, 1e-5), 30, 20, 0.05, spent=[KNOWN])


def test_the_numbers_of_the_worked_example_in_the_docs_are_those_of_the_code():
    text = (Path(__file__).parents[3] / "docs" / "privacy.md").read_text()
    noise = plan(Budget(8, 1e-5), 40, 20, 0.05)
    whole, half = Charge(800, 0.05, noise), Charge(400, 0.05, noise)
    assert f"privacy.noise_multiplier: {noise:.3f}" in text
    assert f"the 40 rounds cost {epsilon([whole], 1e-5):.2f}" in text
    assert f"computed numerically, {epsilon_prv([whole], 1e-5):.2f}" in text
    assert f"After 20 rounds {epsilon([half], 1e-5):.2f} is spent" in text
    assert f"and {rounds_left(Budget(8, 1e-5), [half], Charge(20, 0.05, noise))} more rounds fit" in text
    costs = " | ".join(f"{epsilon([Charge(20 * n, 0.05, 1.0)], 1e-5):.2f}" for n in (1, 10, 20, 40))
    assert f"| epsilon | {costs} |" in text
    assert f"needs a noise of {plan(Budget(8, 1e-5, 2), 40, 20, 0.05):.2f}" in text
    assert f"promised {epsilon([whole], 1e-5, 2):.1f} only" in text


def _divergence_of(charges):
    return sum(c.steps * accounting._divergence(c.sample_rate, c.noise_multiplier) for c in charges)
