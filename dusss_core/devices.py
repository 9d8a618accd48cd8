"""Which device a name means on this machine."""

from __future__ import annotations

import re

from dusss_core.config.base import DEVICE
from dusss_core.errors import UserError
from dusss_core.outside import shown


def resolve_device(name: str) -> str:
    """The torch device that `device` names (auto, cpu, cuda, cuda:N, mps).

    Raises:
        UserError: no device is called so, or it is not on this machine.
    """
    if not re.fullmatch(DEVICE, name):
        raise UserError(f"device: {shown(name, 40)}: no device is called so", "use auto, cpu, cuda, cuda:N or mps")
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    kind, _, number = name.partition(":")
    if not available[kind]:
        raise UserError(f"device: {name} is not available on this machine", "use device: auto or device: cpu")
    if number and int(number) >= (count := torch.cuda.device_count()):
        there = "one GPU, cuda:0" if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1}"
        raise UserError(f"device: {name} is not available: this machine has {there}", "name one that is there")
    return name
