"""One private step: gradients of single records, clipped, summed, noised (Abadi et al. 2016).

What makes the claim true is the sum's sensitivity: one record more or less changes it by at most C in L2 norm. That
holds for whatever loss, as long as the loss of one record is a function of this record and of what is public, the
weights among it. So the loss is asked for one record at a time: records have no way to meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dusss_core.privacy.randomness import Randomness

LossOfRecord = Callable[[Any], Tensor | None]
"""The scalar loss of one record (or of whatever is clipped as one); None: it has nothing to teach."""


def private_gradient(
    model: nn.Module,
    loss_of_record: LossOfRecord,
    records: Iterable[Any],
    *,
    clip: float,
    noise_multiplier: float,
    expected: float,
    randomness: Randomness,
) -> None:
    """Set the gradient of every trained parameter to (clipped sum + N(0, (sigma C)^2)) / expected.

    An empty draw is a step like any other, of noise alone: to skip it would tell that it was empty.

    Args:
        records: those that were drawn.
        clip: C. noise_multiplier: sigma.
        expected: how many contributions are expected, q N: a public constant, never the number that was drawn.
    """
    total = clipped_sum(model, loss_of_record, records, clip)
    torch._foreach_add_(total, randomness.noise_like(total, noise_multiplier * clip))
    torch._foreach_div_(total, expected)
    for parameter, gradient in zip(trained(model), total, strict=True):
        parameter.grad = gradient


def clipped_sum(model: nn.Module, loss_of_record: LossOfRecord, records: Iterable[Any], clip: float) -> list[Tensor]:
    """Sum of the records' gradients, each scaled to an L2 norm of at most `clip`.

    A gradient that is not finite counts as zero: that too is a function of its record alone, and one damaged pixel
    does not poison the model. On CPUs this loop is faster, and much smaller, than hooks or vmap over a batch.

    Returns:
        One float32 tensor for each of `trained(model)`.

    Raises:
        ValueError: the model has a layer that mixes records.
        RuntimeError: a buffer of the model changed, so something leaves the step beside the sum.
    """
    refuse_mixing(model)
    parameters = trained(model)
    total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    before = [buffer.clone() for buffer in model.buffers()]
    for record in records:
        loss = loss_of_record(record)
        if loss is not None and loss.requires_grad:
            _add_clipped(total, torch.autograd.grad(loss, parameters, allow_unused=True), clip)
    if _differ(before, list(model.buffers())):
        raise RuntimeError("a buffer of the model changed in a private step: it would leave the site without noise")
    return total


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def refuse_mixing(model: nn.Module) -> None:
    """Raises ValueError if a layer normalises with the statistics of the batch it sees."""
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            raise ValueError(
                f"{name} ({type(layer).__name__}) takes its statistics from the records at hand and keeps them: "
                "private training needs GroupNorm, or BatchNorm in evaluation mode"
            )


def _add_clipped(total: list[Tensor], gradient: tuple[Tensor | None, ...], clip: float) -> None:
    reached = [(summed, part) for summed, part in zip(total, gradient, strict=True) if part is not None]
    if not reached:
        return
    sums, parts = (list(column) for column in zip(*reached, strict=True))
    norm = torch.stack(torch._foreach_norm([part.float() for part in parts])).norm()
    if norm.device.type == "cpu":
        # to ask costs nothing here, and saves two passes over all parameters
        if math.isfinite(norm.item()):
            torch._foreach_add_(sums, parts, alpha=clip / max(norm.item(), clip))
        return
    # elsewhere the device would have to be waited for, for each record
    torch._foreach_add_(sums, _scaled(parts, norm, clip))


def _scaled(parts: list[Tensor], norm: Tensor, clip: float) -> list[Tensor]:
    """`parts` scaled to a common norm of at most `clip`; zeros if theirs is not finite."""
    finite = norm.isfinite()
    scale = (norm / clip).clamp(min=1).reciprocal()  # exactly 1 up to the bound
    return [torch.where(finite, part * scale, 0) for part in parts]


def _differ(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether any number has changed; a device is waited for once."""
    changed = [(old != new).any() for old, new in zip(before, after, strict=True)]
    return bool(changed) and bool(torch.stack(changed).any())
