"""Finds updates and statistics far larger than those of the other sites: a broken or hostile site, no other hospital.

The size of an update is the L2 norm of the change of the learned weights. A site with more pictures makes more steps
and moves further, so its limit grows with its share of pictures; one with fewer is given no less room than the others.
A site is compared with the others of the same round and not with its own past, which changes with learning rate and
phase, and which whoever poisons slowly would shift along. So at least three answers are needed. How many pictures a
site has is its own claim, unless the study file declares it: a claim alone widens the limit by `MOST_ROOM` at most.

Of a normalisation layer's statistics two things are looked at: that they can be statistics at all, and that the mean
square of what the layer saw is not far beyond that of the others. Networks see scaled pictures, so hospitals differ by
small factors there.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NEEDED = 3
"""Answers without which there is nothing to compare with."""
MOST_ROOM = 50.0
"""By which a number of pictures that nobody declared widens a site's limit, at most."""
MOST_MOMENT = 1e4
"""A layer's mean square, as a multiple of the median of the others', at most: a hundred times the amplitude."""
_MOST_STEPS = 10**12
"""That a counter of training steps can hold."""
_PIECE = 8192
"""Numbers at a time. Of more than 10,000 OpenBLAS makes a work for several threads, which costs more than it gains."""


def too_large(
    norms: Mapping[str, float], examples: Mapping[str, float], ratio: float, declared: Container[str] = ()
) -> dict[str, str]:
    """Sites whose update is too large, with the reason.

    Args:
        norms: L2 norm of each site's change of the learned weights.
        examples: number of training pictures by site, checked before.
        ratio: limit, as a multiple of the median norm of the others.
        declared: sites whose number of pictures is not their own claim alone.
    """
    if len(norms) < NEEDED:
        return {}
    refused = {}
    usual_norm, usual_examples = _medians_of_the_others(norms), _medians_of_the_others({s: examples[s] for s in norms})
    for site, norm in norms.items():
        usual = usual_norm[site]
        more_pictures = max(1.0, examples[site] / usual_examples[site])
        if site not in declared:
            more_pictures = min(MOST_ROOM, more_pictures)
        if usual > 0 and norm > ratio * usual * more_pictures:
            refused[site] = (
                f"its update is {norm / usual:.3g} times as large as the median of the others' "
                f"(norm {norm:.3g}; federation.max_norm_ratio allows {ratio * more_pictures:.3g} times)"
            )
    return refused


def too_strong(layers: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Sites of which a normalisation layer saw far larger numbers than those of the others did, with the reason.

    Args:
        layers: the `moments` of each site; all have the same layers.
    """
    if len(layers) < NEEDED:
        return {}
    refused: dict[str, str] = {}
    for layer in next(iter(layers.values())):
        of_layer = {site: found[layer] for site, found in layers.items()}
        usual = _medians_of_the_others(of_layer)
        for site, moment in of_layer.items():
            if usual[site] > 0 and moment > MOST_MOMENT * usual[site]:
                refused.setdefault(
                    site,
                    f"statistics of '{layer}' are of numbers {(moment / usual[site]) ** 0.5:.3g} times as large as the "
                    f"median of the others' ({MOST_MOMENT**0.5:g} times are allowed)",
                )
    return refused


def moments(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """By normalisation layer with running statistics: its mean squares, mean^2 + variance, summed over channels."""
    found: dict[str, float] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind in ("running_mean", "running_var"):
            values = tensor.double()
            found[layer] = found.get(layer, 0.0) + float((values.square() if kind == "running_mean" else values).sum())
    return found


def impossible_statistic(name: str, tensor: Tensor) -> str | None:
    """What no training can have made of a statistic or a counter, in words; None: nothing. All is finite."""
    if not tensor.numel():
        return None
    kind, smallest, largest = name.rpartition(".")[2], tensor.min().item(), tensor.max().item()
    if kind == "running_var" and smallest < 0:
        return f"holds a variance below 0 ({smallest:.3g})"
    if kind == "num_batches_tracked" and not 0 <= smallest <= largest <= _MOST_STEPS:
        return f"counts {smallest if smallest < 0 else largest:.3g} batches"
    return None


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
