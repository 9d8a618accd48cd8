"""Whether the sites' pictures are of one kind, as far as their batch statistics tell.

A batch-norm layer is trained with the mean and the variance of its own site's batches, and used with the average of all
sites'. Where the sites differ more than the pixels of one, as bright and dark field in microscopy, that average fits
none of them, and each site is better off alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from server.rounds.aggregation import SiteModel

if TYPE_CHECKING:
    from torch import Tensor

FAR = 1.0
"""Variance between the sites' means over the variance within a site, from which a warning is given. Measured in second
rounds: 0.1 to 0.3 for hospitals of one kind of picture, 2.1 for fluorescence beside stained tissue."""
LOOK_AT = 2
"""Round whose answers are looked at: those of the first still hold what the layers started from."""
_MEAN, _VARIANCE = "running_mean", "running_var"


def distance_of_sites(sites: Sequence[Mapping[str, Tensor]]) -> float:
    """How far apart the sites' batch statistics lie: of each layer, the variance between the sites' means over the mean
    variance within a site, both summed over channels; of all layers the largest. 0 without such statistics."""
    import torch

    largest = 0.0
    for name in sites[0] if sites else ():
        prefix, _, last = name.rpartition(_MEAN)
        if last or not name.endswith(_MEAN) or prefix + _VARIANCE not in sites[0]:
            continue
        means = torch.stack([site[name].double() for site in sites])
        within = torch.stack([site[prefix + _VARIANCE].double() for site in sites]).mean()
        largest = max(largest, float(means.var(dim=0, correction=0).mean() / within.clamp(min=1e-12)))
    return largest


def warning_of_domains(models: Mapping[str, SiteModel]) -> str | None:
    """What to say where the sites' statistics are so far apart that sharing them does harm; None where they are not.

    Args:
        models: the accepted answers of a round.
    """
    distance = distance_of_sites([model.tensors for _, model in sorted(models.items())])
    if distance < FAR:
        return None
    return (
        f"the sites' batch statistics lie far apart ({distance:.1f} times the variance within a site): their pictures "
        "seem to be of different kinds, and the shared model may be worse than each site's own. Try local_norm: true "
        "or student.norm: group, and compare with the sites alone (--compare local in a simulation)"
    )
