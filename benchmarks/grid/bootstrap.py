"""How far apart two cells are, and how far that would go in other runs: a hierarchical bootstrap of paired differences.

With d[s, i] = a[s, i] - b[s, i] of picture i in the runs of seed s, the difference is the mean over seeds of the mean
over pictures. A draw takes as many seeds with replacement as there are, and as many pictures with replacement as a
seed has:

    nested     each seed that was taken draws its own pictures: every seed is tested on pictures of its own
               (Davison and Hinkley 1997, section 3.8; Saravanan, Berman and Sober 2020)
    crossed    one draw of pictures for all seeds: every seed is tested on the same ones (Owen 2007, "The pigeonhole
               bootstrap"), so that what a picture has in common over the runs does not average out

The interval is that of the percentiles of the draws' means. Pictures are not runs: those of one run share its weights,
so a test over the pictures alone calls two runs of one and the same method different.

Two or three seeds give a rough interval. A draw takes nothing but the lowest of three in 4 % of cases, or of two in
25 %, so it ends about where the lowest and the highest seed do, wider by what the pictures add. Between the lowest and
the highest of three runs the true mean lies in three cases of four, of two in one of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

DRAWS = 10_000
LEVEL = 0.95
_SEED = 1
"""Of the draws, so that the same figures give the same interval."""


class Difference(NamedTuple):
    """How much higher one cell is than another, in the unit of its figures."""

    mean: float
    interval: tuple[float, float] | None
    """Holds the central 95 % of the draws; None for a single seed, of which nobody can tell what another would give."""
    seeds: int


def paired_difference(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]], *, crossed: bool = False, draws: int = DRAWS
) -> Difference:
    """The difference a - b.

    Args:
        pairs: for each seed, figures a and b of its pictures, in one order.
        crossed: the pictures are the same, in the same order, for all seeds.

    Raises:
        ValueError: no pair; a and b of a seed, or the seeds of a crossed bootstrap, differ in length.
    """
    if not pairs:
        raise ValueError("no seed to compare")
    found = [np.subtract(*_of_equal_length(a, b)) for a, b in pairs]
    mean = float(np.mean([one.mean() for one in found]))
    if len(found) == 1:
        return Difference(mean, None, 1)
    random = np.random.default_rng(_SEED)
    taken = random.integers(len(found), size=(draws, len(found)))
    means = (_crossed if crossed else _nested)(found, taken, random).mean(axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Difference(mean, (float(low), float(high)), len(found))


def _nested(found: Sequence[np.ndarray], taken: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """draws x S means, each of an own draw of the pictures of the seed that was taken there."""
    means = np.empty(taken.shape)
    for seed, one in enumerate(found):
        there = taken == seed
        means[there] = one[random.integers(len(one), size=(there.sum(), len(one)))].mean(axis=1)
    return means


def _crossed(found: Sequence[np.ndarray], taken: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """draws x S means over the pictures that the draw has for all seeds."""
    if len({len(one) for one in found}) > 1:
        raise ValueError("seeds that are tested on the same pictures have as many of them")
    pictures = random.integers(len(found[0]), size=(len(taken), len(found[0])))
    means = np.stack([one[pictures].mean(axis=1) for one in found], axis=1)
    return np.take_along_axis(means, taken, axis=1)


def _of_equal_length(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"figures of {a.shape} and {b.shape} pictures make no pairs")
    return a, b
