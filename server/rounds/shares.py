"""A site's share of a mean, which may have a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.study.federation import MEANS, FederationConfig

_NEARLY_ALL = 0.9


def capped(weights: Sequence[float], max_share: float | None) -> list[float]:
    """Weights of which none is more than a share of their sum; the others keep their proportions.

    Args:
        weights: none below 0.
        max_share: in (0, 1); of n weights above 0, at least 1 / n. None: no limit.

    Returns:
        The weights themselves, where none has a larger share.
    """
    weights = [float(weight) for weight in weights]
    some = sorted((weight for weight in weights if weight > 0), reverse=True)
    if max_share is None or not some or some[0] <= max_share * sum(some):
        return weights
    if len(some) * max_share <= 1:
        return [1.0 if weight > 0 else 0.0 for weight in weights]
    for cut in range(1, len(some)):
        # the `cut` largest have the largest share each, and the rest have what is left
        most = sum(some[cut:]) * max_share / (1 - cut * max_share)
        if some[cut] <= most:
            break
    return [min(weight, most) for weight in weights]


def warning_of_shares(federation: FederationConfig, pictures: Mapping[str, int]) -> str | None:
    """Which of at least three sites is nearly the whole mean by its own word alone, in words; None: none is."""
    agreed = federation.sizes is not None or federation.max_share is not None
    if agreed or federation.weighting != "examples" or federation.strategy not in MEANS or len(pictures) < 3:
        return None
    largest, total = max(pictures, key=pictures.__getitem__), sum(pictures.values())
    if pictures[largest] <= _NEARLY_ALL * total:
        return None
    return (
        f"{largest} says that it has {pictures[largest]} training pictures, {100 * pictures[largest] / total:.3g} % of "
        "all: the mean is nearly its model alone. Ask that site, and hold it to what was agreed with federation.sizes, "
        "or to a share with federation.max_share"
    )
