"""Which records make up each step's batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from dusss_core.config import PhaseConfig


def two_stream_batches(
    labelled: np.ndarray,
    other: np.ndarray,
    batch: int,
    labelled_share: float,
    steps: int,
    generator: torch.Generator,
    *,
    exact: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of two kinds of records, each kind reshuffled whenever it has been used up.

    Scarce labels come round more often than the rest, plentiful ones as often: a batch holds the larger of
    `labelled_share` and their share of the records (at least one record of either kind), or nothing else where there is
    no other kind.

    Args:
        labelled, other: positions of the records of either kind; one of them may be empty.
        exact: `labelled_share` it is, however many of the records are labelled.

    Yields:
        Positions of the step's labelled and other records.
    """
    if not len(labelled) and not len(other):
        raise ValueError("no records to draw from")
    n_labelled = labelled_per_step(len(labelled), len(other), batch, labelled_share, exact=exact)
    first = _endless(labelled, generator)
    second = _endless(other, generator)
    for _ in range(steps):
        yield _take(first, n_labelled), _take(second, batch - n_labelled)


def labelled_per_step(labelled: int, other: int, batch: int, labelled_share: float, *, exact: bool = False) -> int:
    """Labelled records of a batch, as `two_stream_batches` draws it from so many of either kind."""
    if not labelled or not other:
        return batch if labelled else 0
    share = labelled_share if exact else max(labelled_share, labelled / (labelled + other))
    return min(max(round(batch * share), 1), batch - 1)


def steps_per_epoch(records: int, batch: int) -> int:
    """Steps that show as many pictures as the site has."""
    return max(1, math.ceil(records / batch))


def steps_per_round(settings: PhaseConfig, records: int) -> int:
    """Steps of a round of the phase, of a site that trains with so many records."""
    passes = settings.epochs * steps_per_epoch(records, settings.batch)
    return passes if settings.steps is None else min(settings.steps, passes)


def _endless(positions: np.ndarray, generator: torch.Generator) -> Iterator[int]:
    while len(positions):
        yield from positions[torch.randperm(len(positions), generator=generator).numpy()]


def _take(source: Iterator[int], count: int) -> np.ndarray:
    return np.array([next(source) for _ in range(count)], dtype=np.int64)
