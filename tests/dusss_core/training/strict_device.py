"""A device that cannot be waited for, in place of CUDA: torch's `meta`.

Its tensors have shapes and no numbers. So whatever would make the host wait for a CUDA device raises an error here: to
read a number, to branch on one, to count what is not zero, to copy something back, to mix tensors of two devices. What
meta lets pass, copies to the device that are waited for, `watched` refuses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dusss_core import augment
from dusss_core.objectives import cct, lvit, mean_teacher_mse, ssnet
from dusss_core.training import resident, trainer
from dusss_core.transfer import Figures

STRICT = torch.device("meta")


def strict(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Let trainers train on STRICT; the figures that they read, all 1, are added to the list that is returned."""
    read: list[dict[str, float]] = []

    def arrive(figures: Figures) -> dict[str, float]:
        assert all(value.device == STRICT for value in figures._tensors)
        read.append(dict.fromkeys(figures._values, 1.0))
        return read[-1]

    adam, autocast = trainer.AdamW, torch.autocast
    monkeypatch.setattr(Figures, "read", arrive)
    monkeypatch.setattr(resident, "free_memory", lambda device: math.inf)
    for module in (augment, cct, lvit, mean_teacher_mse, ssnet):  # meta has no generator, and asks for none
        monkeypatch.setattr(module, "device_generator", lambda draw, device: draw)
    monkeypatch.setattr(trainer, "AdamW", lambda *args, **kwargs: adam(*args, **{**kwargs, "fused": False}))
    monkeypatch.setattr(torch, "autocast", lambda kind, **how: autocast("cpu" if kind == STRICT.type else kind, **how))
    return read


@contextmanager
def watched() -> Iterator[None]:
    """Inside, whatever would wait for STRICT fails."""
    with _Copies(), _Factories():
        yield


class _Copies(TorchDispatchMode):
    """Refuses copies from the CPU that are waited for: on CUDA they are, unless they are `non_blocking`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        waits = None
        if function is torch.ops.aten._to_copy.default:
            there, waits = kwargs.get("device"), not kwargs.get("non_blocking", False)
            crosses = there is not None and torch.device(there) == STRICT and args[0].device != STRICT
        elif function is torch.ops.aten.copy_.default:
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            crosses = args[0].device == STRICT and args[1].device != STRICT
        if waits and crosses:
            raise AssertionError(f"{function}: a copy to the device that is waited for")
        return function(*args, **kwargs)


class _Factories(TorchFunctionMode):
    """Refuses tensors that are made of Python's numbers on the device: they are copied there, and waited for."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        made = function in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        if made and result.device == STRICT and not isinstance(args[-1], torch.Tensor):
            raise AssertionError(f"{function.__name__}: numbers of the host are copied to the device, and waited for")
        return result
