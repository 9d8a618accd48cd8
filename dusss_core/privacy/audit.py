"""What an attacker finds out from one training run: a lower bound on its epsilon, to set beside the accountant's.

Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run". Each of m candidates is in the training
data with probability one half, each by a coin of its own. Whoever has seen what left guesses for some of them, and may
pass on the others. Many right guesses speak against a small epsilon: an (epsilon, delta)-private run lets nobody be
right more often than by coins that fall right with probability exp(epsilon) / (1 + exp(epsilon)), but for delta.

A lower bound shows that a claim is wrong where it lies above the accountant's. Where it lies below, it tells what this
attack finds, not that no attack finds more.
"""

from __future__ import annotations

import math

import numpy as np

_MOST = 50.0
"""Beyond it no number of guesses says more."""


def lower_bound(right: int, guesses: int, candidates: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that is refuted, at this confidence, by `right` of `guesses` guesses about `candidates`.

    Args:
        guesses: r, how many guesses are made, fixed beforehand. candidates: m.
        delta: of the claim.

    Returns:
        0 where not even epsilon 0 is refuted.

    Raises:
        ValueError: not 0 <= right <= guesses <= candidates.
    """
    if not 0 <= right <= guesses <= candidates:
        raise ValueError(f"{right} right of {guesses} guesses about {candidates} candidates")
    level = 1 - confidence
    if p_value(0.0, right, guesses, candidates, delta) >= level:
        return 0.0
    low, high = 0.0, _MOST
    while high - low > 1e-6:
        middle = (low + high) / 2
        refuted = p_value(middle, right, guesses, candidates, delta) < level
        low, high = (middle, high) if refuted else (low, middle)
    return low


def p_value(epsilon: float, right: int, guesses: int, candidates: int, delta: float) -> float:
    """The largest probability of at least `right` right guesses of any (epsilon, delta)-private run (theorem 5.2)."""
    from scipy.stats import binom

    chance = 1 / (1 + math.exp(-epsilon))
    fewer = np.arange(1, right + 1)
    gained = np.cumsum(binom.pmf(right - fewer, guesses, chance)) / fewer
    by_delta = 2 * candidates * delta * float(gained.max(initial=0.0))
    return min(1.0, float(binom.sf(right - 1, guesses, chance)) + by_delta)


def right_guesses(scores: np.ndarray, inside: np.ndarray, guesses: int) -> int:
    """How many are right if the half of `guesses` with the highest scores is called in, that with the lowest out.

    Args:
        scores: m float, higher: rather in. inside: m bool.
    """
    order = np.argsort(-scores, kind="stable")
    called_in, called_out = order[: guesses // 2], order[len(order) - (guesses - guesses // 2) :]
    return int(inside[called_in].sum() + (~inside[called_out]).sum())


class Eavesdropper:
    """The attacker who sees every noised sum, and knows all candidates and the clipping, but neither coins nor noise.

    With s = 1 for who is in and -1 for who is not, a noised sum less half of all clipped gradients C (m x d) is
    C^T s / 2 + noise. The scores are a ridge regression's s from all steps together. It takes the noise's size from
    what no coins explain, not from what is claimed, and leaves the mean of s free: most gradients point the same way,
    and how many are in says nothing of who.

    It takes every step for one of all records: with `sample_rate` below 1 the draws blur s, and it finds less.
    """

    def __init__(self, candidates: int):
        self._gram = np.zeros((candidates, candidates))
        self._seen = np.zeros(candidates)
        self._square, self._numbers = 0.0, 0

    def step(self, gradients: np.ndarray, noised_sum: np.ndarray) -> None:
        """A step was seen.

        Args:
            gradients: m x d, the clipped gradients of all candidates at the step's weights.
            noised_sum: d.
        """
        gradients = np.asarray(gradients, dtype=np.float64)
        told = np.asarray(noised_sum, dtype=np.float64) - gradients.sum(axis=0) / 2
        self._gram += gradients @ gradients.T
        self._seen += gradients @ told
        self._square += float(told @ told)
        self._numbers += len(told)

    def noise(self) -> float:
        """Standard deviation of the noise in each number, from what the gradients cannot explain."""
        best, _, rank, _ = np.linalg.lstsq(self._gram, self._seen, rcond=1e-12)
        left_over = max(0.0, self._square - float(self._seen @ best))
        return float(np.sqrt(left_over / max(1, self._numbers - rank)))

    def scores(self) -> np.ndarray:
        """m float: an estimate of s."""
        count = len(self._gram)
        smallest = 1e-9 * np.trace(self._gram) / count  # or nothing could be solved without noise
        ridge = (self.noise() ** 2 + smallest) * (np.eye(count) - 1 / count)
        return np.linalg.solve(self._gram / 4 + ridge, self._seen / 2)
