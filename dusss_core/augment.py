"""Augmentation of batches on their device: geometry shared by picture, mask and mask logits, and two views.

Pictures are B x C x H x W float32 in [0, 1], before normalisation. What is drawn for a whole picture (how it is moved,
which changes it gets and how strong they are) is drawn on the CPU from the given generator, and sent to the device in
one copy. Grain, a number for each pixel, is drawn on the device: there by a generator that the given one seeds, so that
from the first grain on runs on the CPU and on CUDA draw different numbers. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch.nn import functional

from dusss_core.seeds import device_generator
from dusss_core.transfer import sent

MAX_ROTATION = 10.0
"""Degrees."""
MAX_SCALE = 0.1
"""Scale is drawn from 1 +- this."""
MAX_SHIFT = 0.05
"""Shifts are drawn from +- this share of the picture."""


@dataclass
class Geometry:
    """One draw of geometry for a batch. `Geometry.draw` makes it, the `apply` methods carry it out.

    Flips and turns are exact (pixels are moved); rotation, scale and shift interpolate. With affine off, a
    sample without a flip or turn comes back bit for bit. Order: flips, transposition, affine.
    """

    flipped: torch.Tensor
    """B, bool: flipped left-right; the caller mirrors these sentences. On the CPU, like all that is drawn."""
    upended: torch.Tensor
    """B, bool: flipped up-down."""
    transposed: torch.Tensor
    """B, bool: rows and columns exchanged; with the flips, that makes every quarter turn."""
    affine: torch.Tensor | None
    """B x 4 float32: rotation (radians), scale, shifts in x and y (shares of the picture); None: none."""
    outside: Literal["black", "edge"] = "black"
    """What comes into a picture from outside: black, or the pixels of its edge."""
    _moves: dict[tuple[torch.device, int, int], _Move] = field(default_factory=dict, repr=False)
    _turned: bool = field(default=True, repr=False)

    @classmethod
    def draw(
        cls,
        batch: int,
        generator: torch.Generator,
        *,
        flip: bool | torch.Tensor = True,
        turns: bool | torch.Tensor = False,
        affine: bool = True,
        outside: Literal["black", "edge"] = "black",
    ) -> Geometry:
        """Draw for `batch` samples.

        Args:
            flip: whether left-right flips are drawn (half of the time); or B bool, for which samples.
            turns: the same for up-down flips and quarter turns; they need square pictures.
            affine: whether rotation, scale and shift are drawn.
            outside: what comes into pictures from outside; into masks the background does, whatever it is.
        """
        # always the same amount of random numbers, whatever is switched on
        unit = torch.rand(batch, 7, generator=generator)
        signed = 2 * unit[:, 3:] - 1
        limits = torch.tensor([math.radians(MAX_ROTATION), MAX_SCALE, MAX_SHIFT, MAX_SHIFT])
        may_flip, may_turn = _permission(flip, batch), _permission(turns, batch)
        return cls(
            flipped=(unit[:, 0] < 0.5) & may_flip,
            upended=(unit[:, 1] < 0.5) & may_turn,
            transposed=(unit[:, 2] < 0.5) & may_turn,
            affine=signed * limits + torch.tensor([0.0, 1.0, 0.0, 0.0]) if affine else None,
            outside=outside,
            _turned=bool(may_turn.any()),
        )

    def apply(self, picture: torch.Tensor, padding: str | None = None) -> torch.Tensor:
        """Move pictures, B x C x H x W float; bilinear. `padding`: zeros or border comes in from outside; None: as
        `outside` says."""
        padding = padding or {"black": "zeros", "edge": "border"}[self.outside]
        return self._resample(self._move(picture), "bilinear", padding)

    def apply_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """Move masks, B x H x W or B x C x H x W of any dtype; nearest, 0 comes in from outside."""
        moved = self._move(mask)
        if self.affine is None:
            return moved
        planes = moved.float() if mask.dim() == 4 else moved.float()[:, None]
        return self._resample(planes, "nearest", "zeros").to(mask.dtype).reshape(mask.shape)

    def apply_logits(self, logits: torch.Tensor, fill: float | torch.Tensor) -> torch.Tensor:
        """Move mask logits, B x C x H x W; bilinear, float32. `fill`, a number or one for each of the C channels, comes
        in from outside.

        A sample that holds a NaN (no text) comes back as NaN everywhere.
        """
        moved = self._move(logits.float())
        if self.affine is None:
            return moved
        fill = torch.as_tensor(fill, dtype=torch.float32, device=moved.device).reshape(-1, 1, 1)
        absent = moved.isnan().flatten(1).any(1)[:, None, None, None]
        # zeros come in from outside, so that is where `fill` is put
        moved = self._resample(torch.where(absent, 0.0, moved - fill), "bilinear", "zeros") + fill
        return torch.where(absent, torch.nan, moved)

    def _move(self, values: torch.Tensor) -> torch.Tensor:
        """Flips and transposition of the last two axes."""
        move = self._on(values)
        values = torch.where(_over(move.flipped, values), values.flip(-1), values)
        if not self._turned:
            return values
        if values.shape[-1] != values.shape[-2]:
            raise ValueError("quarter turns need square pictures")
        values = torch.where(_over(move.upended, values), values.flip(-2), values)
        return torch.where(_over(move.transposed, values), values.transpose(-1, -2), values)

    def _resample(self, values: torch.Tensor, mode: str, padding: str) -> torch.Tensor:
        grid = self._on(values).grid
        if grid is None:
            return values
        with torch.autocast(values.device.type, enabled=False):
            return functional.grid_sample(
                values.float(), grid, mode=mode, padding_mode=padding, align_corners=False
            ).to(values.dtype)

    def _on(self, values: torch.Tensor) -> _Move:
        """The draw on the device of `values`, for planes of their size."""
        device, (height, width) = values.device, values.shape[-2:]
        if (device, height, width) not in self._moves:
            drawn = [self.flipped, self.upended, self.transposed]
            if self.affine is None:
                self._moves[device, height, width] = _Move(*sent(device, *drawn), grid=None)
            else:
                *flags, theta = sent(device, *drawn, self._inverse(height, width))
                grid = functional.affine_grid(theta, [len(theta), 1, height, width], align_corners=False)
                self._moves[device, height, width] = _Move(*flags, grid)
        return self._moves[device, height, width]

    def _inverse(self, height: int, width: int) -> torch.Tensor:
        """B x 2 x 3: from a place in the result to where it is read, in grid_sample's coordinates, in which the picture
        spans -1 to 1. Rotation is in pixels: circles stay circles."""
        angle, scale, right, down = self.affine.unbind(1)
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        return torch.stack(
            [
                torch.stack([cos, sin * height / width, -2 * right], 1),
                torch.stack([-sin * width / height, cos, -2 * down], 1),
            ],
            1,
        )


class _Move(NamedTuple):
    """A draw of geometry on a device, for planes of one size."""

    flipped: torch.Tensor
    upended: torch.Tensor
    transposed: torch.Tensor
    grid: torch.Tensor | None
    """B x H x W x 2: where each pixel is read; None: where it lies."""


def weak_view(picture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightness and contrast by up to 10 %, each sample its own. B x C x H x W in [0, 1] in and out."""
    (signed,) = sent(picture.device, _signed(len(picture), 2, generator))
    return _relit(picture, 1 + 0.1 * signed[:, 0], 1 + 0.1 * signed[:, 1])


def strong_view(picture: torch.Tensor, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Brightness, contrast, gamma by up to 40 %, colour, blur, noise, cutout; each sample draws its own set.

    B x C x H x W in [0, 1], and so is the result. Geometry is not touched: a mask of `picture` stays right.
    `strength`: factor on the chance of each change, in [0, 1].
    """
    batch, channels = picture.shape[:2]
    device, size = picture.device, picture.shape[-2:]
    wanted = torch.rand(batch, len(_CHANCES), generator=generator) < strength * torch.tensor(_CHANCES)
    light, colour, gamma, blur, noise, cutout = wanted.unbind(1)
    amount = _signed(batch, 9, generator)

    tint = 1 + 0.2 * colour[:, None] * _signed(batch, channels, generator) * (channels > 1)
    brightness = (1 + 0.4 * light * amount[:, 0])[:, None] * tint
    contrast = 1 + 0.4 * light * amount[:, 1]
    pixels = max(size) / 224  # the strength of a blur is a matter of the picture's size
    some = [
        *_some(gamma, torch.exp(math.log(1.4) * amount[:, 2])),
        *_some(blur, (1.25 + 0.75 * amount[:, 3]) * pixels),
        *_some(noise, 0.03 + 0.03 * amount[:, 4]),
    ]
    drawn = sent(device, contrast, brightness, *some, *_rectangles(size, cutout, amount[:, 5:].abs()))
    contrast, brightness, powered, power, blurred, sigma, noisy, level, *edges = drawn

    view = _relit(picture, contrast, brightness)
    view = _on(view, powered, lambda chosen: chosen ** _over(power, chosen))
    view = _on(view, blurred, lambda chosen: _blurred(chosen, sigma, 2 * pixels))
    if len(noisy):
        grain = torch.randn(
            len(noisy), *picture.shape[1:], generator=device_generator(generator, device), device=device
        )
        view = _on(view, noisy, lambda chosen: chosen + _over(level, chosen) * grain)
    grey = view.mean((1, 2, 3), keepdim=True)
    return torch.where(_inside(size, *edges), grey, view).clamp(0, 1)


# ---- parts ----

# light, colour, gamma, blur, noise, cutout
_CHANCES = (0.8, 0.8, 0.5, 0.5, 0.5, 0.5)
_MAX_HOLE = 0.2


def _permission(allowed: bool | torch.Tensor, batch: int) -> torch.Tensor:
    if isinstance(allowed, torch.Tensor):
        return allowed.cpu().bool()
    return torch.full((batch,), allowed)


def _over(flags: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """B flags, shaped to select whole samples of `values`."""
    return flags.reshape(-1, *[1] * (values.dim() - 1))


def _signed(batch: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """batch x count, uniform in [-1, 1)."""
    return 2 * torch.rand(batch, count, generator=generator) - 1


def _relit(picture: torch.Tensor, contrast: torch.Tensor, brightness: torch.Tensor) -> torch.Tensor:
    """Times `contrast` (B) around the sample mean, then `brightness` (B or B x C); clamped to [0, 1]."""
    contrast = contrast.reshape(-1, 1, 1, 1)
    brightness = brightness.reshape(len(picture), -1, 1, 1)
    mean = picture.mean((1, 2, 3), keepdim=True)
    return torch.addcmul(brightness * mean * (1 - contrast), picture, brightness * contrast).clamp_(0, 1)


def _some(chosen: torch.Tensor, strength: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the chosen samples, and their strengths."""
    places = chosen.nonzero().flatten()
    return places, strength[places]


def _on(picture: torch.Tensor, places: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`change` of the samples at `places` only."""
    if not len(places):
        return picture
    return picture.index_copy(0, places, change(picture[places]).to(picture.dtype))


def _blurred(picture: torch.Tensor, sigma: torch.Tensor, largest: float) -> torch.Tensor:
    """Gaussian blur of each sample by its own sigma (B, pixels, at most `largest`), edges reflected.

    Two passes of one grouped convolution, in which every plane is a group.
    """
    batch, channels, height, width = picture.shape
    radius = min(max(1, math.ceil(2 * largest)), height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=picture.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    planes = picture.reshape(1, batch * channels, height, width)
    planes = functional.pad(planes, (radius, radius, radius, radius), mode="reflect")
    with _untried_kernels():
        planes = functional.conv2d(planes, kernel[:, :, None, :], groups=batch * channels)
        planes = functional.conv2d(planes, kernel[:, :, :, None], groups=batch * channels)
    return planes.reshape(picture.shape)


@contextmanager
def _untried_kernels() -> Iterator[None]:
    """cuDNN takes a kernel as it is, where else it may try them (`dusss_core.runtime`): each step blurs another number
    of samples, and would begin anew."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _rectangles(size: torch.Size, wanted: torch.Tensor, unit: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One rectangle of 2 to 20 % of the area for each wanted sample: `wanted`, and where it begins and ends from above
    and from the left, in pixels; B each.

    Args:
        unit: B x 4 in [0, 1]: area, aspect, place down and across.
    """
    height, width = size
    area = 0.02 + (_MAX_HOLE - 0.02) * unit[:, 0]
    aspect = torch.exp(math.log(2) * (2 * unit[:, 1] - 1))
    tall, wide = (area * aspect).sqrt() * height, (area / aspect).sqrt() * width
    top, left = unit[:, 2] * (height - tall), unit[:, 3] * (width - wide)
    return wanted, top, top + tall, left, left + wide


def _inside(size: torch.Size, wanted: torch.Tensor, top, bottom, left, right) -> torch.Tensor:
    """B x 1 x H x W bool: the pixels of the `_rectangles`."""

    def between(count: int, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        centres = torch.arange(count, device=wanted.device) + 0.5
        return (centres >= start[:, None]) & (centres < end[:, None])

    down, across = between(size[0], top, bottom), between(size[1], left, right)
    return (down[:, :, None] & across[:, None, :] & wanted[:, None, None])[:, None]
