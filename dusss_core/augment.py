"""Augmentation of batches on their device: geometry shared by picture, mask and mask logits, and two views.

Pictures are B x C x H x W float32 in [0, 1], before normalisation. Random numbers are drawn on the CPU from
the given generator and moved, so that CPU and CUDA runs draw the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch.nn import functional

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
    """B, bool: flipped left-right; the caller mirrors these sentences."""
    upended: torch.Tensor
    """B, bool: flipped up-down."""
    transposed: torch.Tensor
    """B, bool: rows and columns exchanged; with the flips, that makes every quarter turn."""
    affine: torch.Tensor | None
    """B x 4 float32: rotation (radians), scale, shifts in x and y (shares of the picture); None: none."""
    _grids: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict, repr=False)
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
        device: torch.device | str = "cpu",
    ) -> Geometry:
        """Draw for `batch` samples.

        Args:
            flip: whether left-right flips are drawn (half of the time); or B bool, for which samples.
            turns: the same for up-down flips and quarter turns; they need square pictures.
            affine: whether rotation, scale and shift are drawn.
        """
        # always the same amount of random numbers, whatever is switched on
        unit = torch.rand(batch, 7, generator=generator)
        signed = 2 * unit[:, 3:] - 1
        limits = torch.tensor([math.radians(MAX_ROTATION), MAX_SCALE, MAX_SHIFT, MAX_SHIFT])
        may_flip, may_turn = _permission(flip, batch), _permission(turns, batch)
        return cls(
            flipped=((unit[:, 0] < 0.5) & may_flip).to(device),
            upended=((unit[:, 1] < 0.5) & may_turn).to(device),
            transposed=((unit[:, 2] < 0.5) & may_turn).to(device),
            affine=(signed * limits + torch.tensor([0.0, 1.0, 0.0, 0.0])).to(device) if affine else None,
            _turned=bool(may_turn.any()),
        )

    def apply(self, picture: torch.Tensor, padding: str = "zeros") -> torch.Tensor:
        """Move pictures, B x C x H x W float; bilinear. `padding`: zeros or border comes in from outside."""
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
        values = torch.where(_over(self.flipped, values), values.flip(-1), values)
        if not self._turned:
            return values
        if values.shape[-1] != values.shape[-2]:
            raise ValueError("quarter turns need square pictures")
        values = torch.where(_over(self.upended, values), values.flip(-2), values)
        return torch.where(_over(self.transposed, values), values.transpose(-1, -2), values)

    def _resample(self, values: torch.Tensor, mode: str, padding: str) -> torch.Tensor:
        if self.affine is None:
            return values
        grid = self._grid(values.shape[-2], values.shape[-1])
        with torch.autocast(values.device.type, enabled=False):
            return functional.grid_sample(
                values.float(), grid, mode=mode, padding_mode=padding, align_corners=False
            ).to(values.dtype)

    def _grid(self, height: int, width: int) -> torch.Tensor:
        """B x H x W x 2: where each output pixel is read. Rotation is in pixels: circles stay circles."""
        if (height, width) not in self._grids:
            angle, scale, right, down = self.affine.unbind(1)
            cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
            # the inverse map, in grid_sample's coordinates, where the picture spans -1 to 1
            theta = torch.stack(
                [
                    torch.stack([cos, sin * height / width, -2 * right], 1),
                    torch.stack([-sin * width / height, cos, -2 * down], 1),
                ],
                1,
            )
            shape = [len(theta), 1, height, width]
            self._grids[height, width] = functional.affine_grid(theta, shape, align_corners=False)
        return self._grids[height, width]


def weak_view(picture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightness and contrast by up to 10 %, each sample its own. B x C x H x W in [0, 1] in and out."""
    signed = _signed(len(picture), 2, generator, picture.device)
    return _relit(picture, 1 + 0.1 * signed[:, 0], 1 + 0.1 * signed[:, 1])


def strong_view(picture: torch.Tensor, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Brightness, contrast, gamma by up to 40 %, colour, blur, noise, cutout; each sample draws its own set.

    B x C x H x W in [0, 1], and so is the result. Geometry is not touched: a mask of `picture` stays right.
    `strength`: factor on the chance of each change, in [0, 1].
    """
    batch, channels = picture.shape[:2]
    device = picture.device
    wanted = torch.rand(batch, len(_CHANCES), generator=generator) < strength * torch.tensor(_CHANCES)
    light, colour, gamma, blur, noise, cutout = wanted.unbind(1)
    amount = _signed(batch, 9, generator, "cpu")

    tint = 1 + 0.2 * colour[:, None] * _signed(batch, channels, generator, "cpu") * (channels > 1)
    brightness = (1 + 0.4 * light * amount[:, 0])[:, None] * tint
    view = _relit(picture, (1 + 0.4 * light * amount[:, 1]).to(device), brightness.to(device))
    view = _on(view, gamma, lambda some, power: some**power, torch.exp(math.log(1.4) * amount[:, 2]))
    pixels = max(picture.shape[-2:]) / 224  # the strength of a blur is a matter of the picture's size
    sigma = (1.25 + 0.75 * amount[:, 3]) * pixels
    view = _on(view, blur, lambda some, s: _blurred(some, s.flatten(), 2 * pixels), sigma)
    n_noisy = int(noise.sum())
    grain = torch.randn(n_noisy, *picture.shape[1:], generator=generator).to(device)
    view = _on(view, noise, lambda some, level: some + level * grain, 0.03 + 0.03 * amount[:, 4])
    hole = _rectangles(picture.shape[-2:], cutout, amount[:, 5:].abs()).to(device)
    grey = view.mean((1, 2, 3), keepdim=True)
    return torch.where(hole, grey, view).clamp(0, 1)


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


def _signed(batch: int, count: int, generator: torch.Generator, device: torch.device | str) -> torch.Tensor:
    """batch x count, uniform in [-1, 1)."""
    return (2 * torch.rand(batch, count, generator=generator) - 1).to(device)


def _relit(picture: torch.Tensor, contrast: torch.Tensor, brightness: torch.Tensor) -> torch.Tensor:
    """Times `contrast` (B) around the sample mean, then `brightness` (B or B x C); clamped to [0, 1]."""
    contrast = contrast.reshape(-1, 1, 1, 1)
    brightness = brightness.reshape(len(picture), -1, 1, 1)
    mean = picture.mean((1, 2, 3), keepdim=True)
    return torch.addcmul(brightness * mean * (1 - contrast), picture, brightness * contrast).clamp_(0, 1)


def _on(picture: torch.Tensor, chosen: torch.Tensor, change, strength: torch.Tensor) -> torch.Tensor:
    """`change(samples, strength)` on the chosen samples only; flags and strengths are on the CPU."""
    places = chosen.nonzero().flatten()
    if not len(places):
        return picture
    some = strength[places][:, None, None, None].to(picture.device)
    places = places.to(picture.device)
    return picture.index_copy(0, places, change(picture[places], some).to(picture.dtype))


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
    planes = functional.conv2d(planes, kernel[:, :, None, :], groups=batch * channels)
    planes = functional.conv2d(planes, kernel[:, :, :, None], groups=batch * channels)
    return planes.reshape(picture.shape)


def _rectangles(size: torch.Size, wanted: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """B x 1 x H x W bool: one rectangle of 2 to 20 % of the area in each wanted sample.

    Args:
        unit: B x 4 in [0, 1]: area, aspect, place down and across.
    """
    height, width = size
    area = 0.02 + (_MAX_HOLE - 0.02) * unit[:, 0]
    aspect = torch.exp(math.log(2) * (2 * unit[:, 1] - 1))
    tall, wide = (area * aspect).sqrt() * height, (area / aspect).sqrt() * width
    top, left = unit[:, 2] * (height - tall), unit[:, 3] * (width - wide)

    def inside(count: int, start: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        centres = torch.arange(count) + 0.5
        return (centres >= start[:, None]) & (centres < (start + length)[:, None])

    down, across = inside(height, top, tall), inside(width, left, wide)
    return (down[:, :, None] & across[:, None, :] & wanted[:, None, None])[:, None]
