"""An attack on the step itself: whoever sees the weights guesses which canaries were in (Steinke et al. 2023).

Each canary has a weight of its own and a gradient far above C, and is in the data with probability one half. From the
number of right guesses follows a lower bound on epsilon, which must not exceed the one that is claimed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import binom
from torch import nn

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
    order = np.argsort(-model.weight.detach().numpy()[0])
    half = GUESSES // 2
    return int(inside[order[:half]].sum() + (~inside[order[-half:]]).sum())


def lower_bound(right, level=0.05):
    """The largest epsilon that `right` guesses speak against at this level."""

    def p_value(epsilon):
        chance = 1 / (1 + math.exp(-epsilon))
        beta = binom.sf(right - 1, GUESSES, chance)
        i = np.arange(1, right + 1)
        excess = np.cumsum(binom.pmf(right - i, GUESSES, chance)) / i
        return min(1.0, beta + 2 * CANARIES * DELTA * max(0.0, float(excess.max(initial=0))))

    if p_value(0) >= level:
        return 0.0
    return brentq(lambda epsilon: p_value(epsilon) - level, 0, 20)


@pytest.mark.parametrize(
    ("noise", "clip", "holds"),
    [(1, 1, True), (0.25, 1, False), (1, 20, False)],
    ids=["as it is", "a quarter of the noise", "not clipped"],
)
def test_an_attack_finds_no_more_than_the_claimed_epsilon(noise, clip, holds):
    found = lower_bound(attacked(noise * noise_multiplier(), clip))
    assert (found <= CLAIMED) == holds
