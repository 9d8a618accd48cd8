"""Losses in float32 whatever the autocast around them: small distances do not survive bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def full_precision(function: Function) -> Function:
    """Decorator: `function` runs outside autocast and its half-precision tensors arrive as float32.

    Tensors inside tuples and named tuples are widened too; float64 stays float64, to check gradients.
    """

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        arguments = [_widened(value) for value in args]
        named = {key: _widened(value) for key, value in kwargs.items()}
        with torch.autocast(_device_type([*arguments, *named.values()]), enabled=False):
            return function(*arguments, **named)

    return wrapped  # type: ignore[return-value]


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() and value.dtype.itemsize < 4 else value
    if isinstance(value, tuple):
        items = [_widened(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _device_type(values: Any) -> str:
    for value in values:
        if isinstance(value, torch.Tensor):
            return value.device.type
        if isinstance(value, tuple) and value:
            return _device_type(value)
    return "cpu"
