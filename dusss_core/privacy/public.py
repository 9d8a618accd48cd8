"""A bank of public cases: drawn pictures and made-up sentences, the same everywhere, about nobody.

Records are contrasted with it in private pretraining, so it needs no likeness to any hospital's data, only pictures
that differ from each other and sentences that differ in what they say.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

from dusss_core.config import ImageConfig
from dusss_core.seeds import generator

CASES = 32

_EXTENTS = ("A small", "One large", "A faint", "Several")
_FINDINGS = ("opacity", "infected area", "nodule", "consolidation", "lesion", "effusion")
_PLACES = ("upper left", "middle left", "lower left", "upper right", "middle right", "lower right")


@cache
def public_captions() -> tuple[str, ...]:
    """The sentences, all different, in the order of `public_pictures`."""
    return tuple(f"{extent} {finding} in the {place} field." for extent, finding, place in _cases())


def public_pictures(image: ImageConfig) -> Tensor:
    """CASES x C x size x size, float32 in [0, 1]: two dark fields in a bright body, and what the caption says."""
    return torch.stack([_picture(number, *case, image) for number, case in enumerate(_cases())])


@cache
def _cases() -> tuple[tuple[str, str, str], ...]:
    every = list(itertools.product(_EXTENTS, _FINDINGS, _PLACES))
    order = torch.randperm(len(every), generator=generator("public cases")).tolist()
    return tuple(every[i] for i in order[:CASES])


def _picture(number: int, extent: str, finding: str, place: str, image: ImageConfig) -> Tensor:
    draw = generator("public picture", number)
    jitter = 2 * torch.rand(8, generator=draw) - 1
    canvas = 0.1 + 0.6 * _blob(image.size, 0.5, 0.5, 0.45 + 0.03 * jitter[0], 0.4)
    for middle in (0.3, 0.7):
        canvas = canvas - 0.4 * _blob(image.size, 0.5, middle + 0.02 * jitter[1], 0.33, 0.13 + 0.02 * jitter[2])
    row, side = place.split()
    down = {"upper": 0.3, "middle": 0.5, "lower": 0.7}[row] + 0.04 * jitter[3]
    across = {"left": 0.3, "right": 0.7}[side] + 0.04 * jitter[4]
    radius = {"One large": 0.11}.get(extent, 0.06) + 0.01 * jitter[5]
    strength = (0.2 if extent == "A faint" else 0.4) + 0.02 * _FINDINGS.index(finding)
    for offset in (-0.08, 0.0, 0.08) if extent == "Several" else (0.0,):
        canvas = canvas + strength * _blob(image.size, down + offset, across, radius, radius * (1.2 + 0.3 * jitter[6]))
    grain = 0.03 * torch.randn(image.channels, image.size, image.size, generator=draw)
    return (canvas + 0.05 * jitter[7] + grain).clamp(0, 1)


def _blob(size: int, down: float, across: float, high: float, wide: float) -> Tensor:
    """size x size: 1 inside an ellipse, 0 outside, with a soft edge. All lengths as shares of the picture."""
    place = (torch.arange(size) + 0.5) / size
    distance = ((place[:, None] - down) / high) ** 2 + ((place[None, :] - across) / wide) ** 2
    return torch.sigmoid(6 * (1 - distance))
