"""Randomness that is a function of names, so that a run repeats exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(*names: object) -> int:
    """A 32-bit seed from the study's seed, the site, the phase, the round, ...

    32 bits because torch's CPU generator uses no more of a seed than that.
    """
    digest = hashlib.sha256("\x1f".join(str(name) for name in names).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def generator(*names: object) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*names))


def device_generator(draw: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator for large draws on `device`: `draw` itself on the CPU, elsewhere a new one that `draw` seeds.

    What `draw` draws next so depends on the kind of device.
    """
    import torch

    if device.type == "cpu":
        return draw
    seed = int(torch.randint(2**32, (), generator=draw))
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def global_seed(*names: object, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators are seeded by `derive_seed`; outside they are as if nothing had been drawn.

    For layers that draw from them, such as dropout. The code of this project takes a `generator`.
    """
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(*names))
        yield


def unit_hash(*names: object) -> float:
    """A number in [0, 1) that depends on the names alone; used to draw splits and label fractions by id."""
    digest = hashlib.sha256("\x1f".join(str(name) for name in names).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
