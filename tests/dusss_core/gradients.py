"""Comparison of a loss with a naive reference: values and gradients, in float32 and float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def assert_same_as_reference(
    loss: Callable[..., Tensor], reference: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 2e-5
) -> None:
    """`loss` has the value and the gradients of `reference` at `inputs`.

    The reference runs in float64, the loss in float64 (tight) and float32 (`tolerance`, relative to the
    largest entry). A tensor-valued loss is summed with fixed weights, so that no gradient cancels.
    """
    expected = _value_and_gradients(reference, inputs, torch.float64)
    for dtype, relative in ((torch.float64, 1e-9), (torch.float32, tolerance)):
        for got, wanted in zip(_value_and_gradients(loss, inputs, dtype), expected, strict=True):
            assert torch.isfinite(got).all()
            scale = float(wanted.abs().max()) if wanted.numel() else 0.0
            torch.testing.assert_close(got.double(), wanted, rtol=relative, atol=relative * max(scale, 0.1))


def _value_and_gradients(loss, inputs, dtype) -> list[Tensor]:
    leaves = [value.detach().to(dtype).requires_grad_() for value in inputs]
    value = loss(*leaves)
    assert value.dtype == dtype
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=dtype).view(value.shape)
    gradients = torch.autograd.grad((value * weights).sum(), leaves, allow_unused=True)
    zeros = (torch.zeros_like(leaf) for leaf in leaves)
    return [value.detach(), *(zero if g is None else g for g, zero in zip(gradients, zeros, strict=True))]
