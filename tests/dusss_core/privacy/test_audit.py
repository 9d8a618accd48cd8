"""An attack on the step itself: whoever sees the weights guesses which canaries were in (Steinke et al. 2023).

Each canary has a weight of its own and a gradient far above C, and is in the data with probability one half. From the
number of right guesses follows a lower bound on epsilon, which must not exceed the one that is claimed.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import binom
from torch import nn

from dusss_core.privacy.audit import Eavesdropper, lower_bound, right_guesses
from dusss_core.privacy.randomness import Randomness
from dusss_core.privacy.step import private_gradient

CLAIMED, DELTA = 1.0, 1e-5
CANARIES, GUESSES = 2500, 300
STEPS, RATE = 20, 0.25


def noise_multiplier():
    """That for which the steps cost the claimed epsilon."""
    from opacus.accountants.analysis import rdp

    orders = [1 + x / 10 for x in range(1, 100)] + list(range(12, 256, 4))

    def epsilon(sigma):
        spent = rdp.compute_rdp(q=RATE, noise_multiplier=sigma, steps=STEPS, orders=orders)
        return rdp.get_privacy_spent(orders=orders, rdp=spent, delta=DELTA)[0]

    return brentq(lambda sigma: epsilon(sigma) - CLAIMED, 1, 50, xtol=1e-3)


def attacked(sigma, clip):
    """Right guesses of GUESSES after training with `sigma`, of which `clip` is what the step is told."""
    randomness = Randomness()
    inside = randomness.poisson_draw(CANARIES, 0.5)
    model = nn.Linear(CANARIES, 1, bias=False)
    nn.init.zeros_(model.weight)
    for _ in range(STEPS):
        drawn = np.flatnonzero(inside & randomness.poisson_draw(CANARIES, RATE))
        private_gradient(
            model,
            lambda canary: -20 * model.weight[0, canary],
            drawn,
            clip=clip,
            noise_multiplier=sigma / clip,
            expected=RATE * CANARIES,
            randomness=randomness,
        )
        with torch.no_grad():
            model.weight -= model.weight.grad
    return right_guesses(model.weight.detach().numpy()[0], inside, GUESSES)


@pytest.mark.parametrize(
    ("noise", "clip", "holds"),
    [(1, 1, True), (0.25, 1, False), (1, 20, False)],
    ids=["as it is", "a quarter of the noise", "not clipped"],
)
def test_an_attack_finds_no_more_than_the_claimed_epsilon(noise, clip, holds):
    found = lower_bound(attacked(noise * noise_multiplier(), clip), GUESSES, CANARIES, DELTA)
    assert (found <= CLAIMED) == holds


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("guesses", [60, 200])
def test_of_runs_that_tell_exactly_epsilon_one_in_twenty_at_most_is_accused(epsilon, guesses):
    """Randomised response: each coin is told right with the largest probability that epsilon allows."""
    chance = 1 / (1 + np.exp(-epsilon))
    accused = [lower_bound(right, guesses, guesses, 0.0) > epsilon + 1e-5 for right in range(guesses + 1)]
    probability = binom.pmf(np.arange(guesses + 1), guesses, chance) @ np.array(accused)
    assert 0.01 < probability <= 0.05


def test_a_lower_bound_by_hand():
    # all of ten right: refuted where chance ** 10 < 1 / 20
    chance = 0.05**0.1
    assert lower_bound(10, 10, 10, 0.0) == pytest.approx(np.log(chance / (1 - chance)), abs=1e-5)
    assert lower_bound(5, 10, 10, 0.0) == 0
    # a delta explains some of it, the more candidates the more
    assert lower_bound(300, 300, 300, 0.0) > lower_bound(300, 300, 300, 1e-4) > lower_bound(300, 300, 900, 1e-4)
    with pytest.raises(ValueError, match="11 right"):
        lower_bound(11, 10, 10, 0.0)


def test_the_sure_are_called_and_the_unsure_passed_over():
    inside = np.array([True, False, True, False, True, False])
    scores = np.array([3.0, 0.1, 2.0, -2.0, 0.0, -3.0])
    assert right_guesses(scores, inside, 4) == 4
    assert right_guesses(-scores, inside, 4) == 0
    # of an odd number one more is called out
    assert right_guesses(np.array([0.0, 0, 0, 0, 9, -9]), inside, 3) == 3
    assert right_guesses(np.array([0.0, 0, 0, 0, -9, 9]), inside, 3) == 1


@pytest.mark.parametrize(("noise", "right"), [(1e-6, (20, 20)), (1.0, (14, 20)), (1e6, (3, 17))])
def test_an_eavesdropper_reads_the_coins_as_well_as_the_noise_lets_it(noise, right):
    draw = np.random.default_rng(0)
    inside = draw.random(40) < 0.5
    ear = Eavesdropper(40)
    for _ in range(4):
        gradients = draw.standard_normal((40, 30)) / 30**0.5 + 1  # more candidates than numbers in one sum; much alike
        ear.step(gradients, gradients[inside].sum(0) + noise * draw.standard_normal(30))
    assert right[0] <= right_guesses(ear.scores(), inside, 20) <= right[1]
    assert noise < 1e-3 or ear.noise() == pytest.approx(noise, rel=0.15)
    if noise < 1e-3:
        assert np.allclose(ear.scores(), np.where(inside, 1, -1), atol=1e-2)
