"""Finds updates that are far larger than those of the other sites: a broken or hostile site, not another hospital.

The size of an update is the L2 norm of the change of the learned weights. A site with more pictures makes more steps
and moves further, so its limit grows with its share of pictures; one with fewer is given no less room than the others.
A site is compared with the others of the same round and not with its own past, which changes with learning rate and
phase, and which whoever poisons slowly would shift along. So at least three answers are needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING

from feddusss.wire import is_statistic

if TYPE_CHECKING:
    from torch import Tensor

    from server.rounds.replies import Reply

NEEDED = 3
"""Answers without which there is nothing to compare with."""


def update_norms(replies: Mapping[str, Reply], model: Mapping[str, Tensor]) -> dict[str, float]:
    """L2 norm of each site's change of the learned weights of `model`."""
    learned = [name for name, tensor in model.items() if not is_statistic(name, tensor)]
    return {site: _norm(reply.tensors, model, learned) for site, reply in replies.items()}


def too_large(norms: Mapping[str, float], examples: Mapping[str, float], ratio: float) -> dict[str, str]:
    """Sites whose update is too large, with the reason.

    Args:
        norms: from `update_norms`.
        examples: number of training pictures by site, checked before.
        ratio: limit, as a multiple of the median norm of the others.
    """
    if len(norms) < NEEDED:
        return {}
    refused = {}
    for site, norm in norms.items():
        others = [other for other in norms if other != site]
        usual = median(norms[other] for other in others)
        more_pictures = max(1.0, examples[site] / median(examples[other] for other in others))
        if usual > 0 and norm > ratio * usual * more_pictures:
            refused[site] = (
                f"its update is {norm / usual:.3g} times as large as the median of the others' "
                f"(norm {norm:.3g}; federation.max_norm_ratio allows {ratio * more_pictures:.3g} times)"
            )
    return refused


def _norm(tensors: Mapping[str, Tensor], model: Mapping[str, Tensor], names: list[str]) -> float:
    # in double precision: the square of a large finite float32 is not finite
    return math.sqrt(sum(float((tensors[name].double() - model[name].double()).square().sum()) for name in names))
