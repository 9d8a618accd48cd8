"""Finds updates that are far larger than those of the other sites: a broken or hostile site, not another hospital.

The size of an update is the L2 norm of the change of the learned weights. A site with more pictures makes more steps
and moves further, so its limit grows with its share of pictures; one with fewer is given no less room than the others.
A site is compared with the others of the same round and not with its own past, which changes with learning rate and
phase, and which whoever poisons slowly would shift along. So at least three answers are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NEEDED = 3
"""Answers without which there is nothing to compare with."""
_PIECE = 8192
"""Numbers at a time. Of more than 10,000 OpenBLAS makes a work for several threads, which costs more than it gains."""


def too_large(norms: Mapping[str, float], examples: Mapping[str, float], ratio: float) -> dict[str, str]:
    """Sites whose update is too large, with the reason.

    Args:
        norms: L2 norm of each site's change of the learned weights.
        examples: number of training pictures by site, checked before.
        ratio: limit, as a multiple of the median norm of the others.
    """
    if len(norms) < NEEDED:
        return {}
    refused = {}
    usual_norm, usual_examples = _medians_of_the_others(norms), _medians_of_the_others({s: examples[s] for s in norms})
    for site, norm in norms.items():
        usual = usual_norm[site]
        more_pictures = max(1.0, examples[site] / usual_examples[site])
        if usual > 0 and norm > ratio * usual * more_pictures:
            refused[site] = (
                f"its update is {norm / usual:.3g} times as large as the median of the others' "
                f"(norm {norm:.3g}; federation.max_norm_ratio allows {ratio * more_pictures:.3g} times)"
            )
    return refused


def _medians_of_the_others(values: Mapping[str, float]) -> dict[str, float]:
    """For each of at least two sites, the median of all values but its own."""
    ranked = sorted(values, key=values.__getitem__)
    medians = {}
    for place, site in enumerate(ranked):
        others = len(ranked) - 1
        middle = {(others - 1) // 2, others // 2}
        medians[site] = fmean(values[ranked[at + (at >= place)]] for at in middle)
    return medians


def squared_distance(one: Tensor, other: Tensor) -> float:
    """Squared L2 norm of the difference of two tensors on the CPU; not finite if one of their numbers is not.

    In double precision: the square of a large finite float32 is not finite. Piece by piece, since what fits the
    processor's cache need not pass through memory.
    """
    import numpy as np

    first, second = one.reshape(-1).numpy(), other.reshape(-1).numpy()
    total = 0.0
    for start in range(0, len(first), _PIECE):
        change = first[start : start + _PIECE].astype(np.float64)
        change -= second[start : start + _PIECE]
        total += float(change @ change)
    return total
