"""From stored values to intensities in [0, 1] or to class indices: the rules that all formats share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R BT.601, as Pillow and OpenCV turn colour into gray."""
MANY_VALUES = 32
"""A mask with more gray values than this may be an antialiased one-class mask; see `_is_gray`."""
FLAT = 0.25
"""Share of pixels that equal all their neighbours, from which on gray values may be areas: of a wide soft border over a
whole picture it is about a tenth, of nuclei of five pixels across two fifths."""
STEP = 2
"""Gray values that are further apart than this are no step of a smooth border."""


@dataclass(frozen=True)
class Raw:
    """A decoded picture."""

    pixels: np.ndarray
    """H x W, or H x W x 3 for colour; stored values, in any dtype."""
    black: float
    """The value that stands for 0."""
    white: float
    """The value that stands for 1; below `black` where the picture is stored inverted."""
    bits: int
    """Bits per sample in the file."""
    indices: np.ndarray | None = None
    """H x W, for palette pictures: the index of each pixel's colour, which is the class in a mask."""
    lossy: bool = False
    """The format blurs values, so those of a mask are not exact."""
    alpha_alone: bool = False
    """Only the alpha channel, which is dropped, differs from pixel to pixel."""


def percentile_window(pixels: np.ndarray) -> tuple[float, float]:
    """The 0.5 and 99.5 percentiles of this picture: black and white where the file names neither.

    What is no number counts as 0; what is infinite does not count, or one such pixel would leave all others black.
    """
    known = known_values(pixels)
    low, high = np.percentile(known, (0.5, 99.5)) if known.size else (0.0, 0.0)
    return float(low), float(high)


def known_values(pixels: np.ndarray) -> np.ndarray:
    """The values that are not infinite, with 0 for those that are no number."""
    if pixels.dtype.kind != "f":
        return pixels
    endless = np.isinf(pixels)
    return np.nan_to_num(pixels[~endless] if endless.any() else pixels)


def depth_window(pixels: np.ndarray) -> tuple[float, float]:
    """Black and white of deep integer pictures: 0 and the least of 8, 10, 12, 14, 16 full bits that holds
    all.

    X-rays of 12 bits are often stored in 16: dividing by 65535 would leave them black. Steps of whole bit
    depths, not the maximum itself, keep pictures of one device comparable. Negative or larger values:
    percentiles.
    """
    highest = int(pixels.max(initial=0))
    if int(pixels.min(initial=0)) < 0 or highest > 65535:
        return percentile_window(pixels)
    return 0.0, float(next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if highest < 2**bits))


def to_intensities(raw: Raw, channels: int) -> np.ndarray:
    """float32, C x H x W, in [0, 1]; a picture of one value only becomes black."""
    span = raw.white - raw.black
    if span == 0:
        return np.zeros((channels, *raw.pixels.shape[:2]), np.float32)
    scaled = raw.pixels.astype(np.float32)
    if raw.black:
        scaled -= np.float32(raw.black)
    scaled /= np.float32(span)
    if raw.pixels.dtype.kind == "f":
        np.nan_to_num(scaled, copy=False, nan=0.0)  # the background of some volumes
    np.clip(scaled, 0.0, 1.0, out=scaled)
    if scaled.ndim == 2:
        return np.repeat(scaled[None], channels, axis=0)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)) if channels == 3 else np.minimum(scaled @ LUMA, 1)[None]


def to_classes(raw: Raw) -> np.ndarray:
    """uint8 class indices, H x W.

    - Palette pictures: the palette's index, unless the palette is just black and white, or black is used and not by
      index 0; then as other colour.
    - 0 and 1; 0 and 255, 0 and 65535: one class, 0 and 1.
    - Lossy formats, and more than 32 different values as a gray picture has them: a one-class mask with soft borders,
      cut at one half.
    - Anything else up to 255: the value is the class index, nuclei that are numbered among them, with gaps or without.
    - Colour with equal channels is gray; with black and one colour, a one-class mask.

    Raises:
        ValueError: several colours, negative or fractional values, values above 255; all that the file shows is in its
            alpha channel.
    """
    if raw.alpha_alone:  # or the mask would be all foreground, or all background
        raise ValueError("all that it shows is in its alpha channel, which is dropped")
    values = raw.indices if raw.indices is not None else raw.pixels
    if values.ndim == 3:
        values = _from_colour(values, raw.lossy)
    if values.dtype.kind == "f":
        values = _whole_numbers(values)
    used = _used_values(values)
    if used.size == 0 or used[0] < 0:
        raise ValueError(f"it holds the value {used[0]}" if used.size else "it has no pixels")
    if used[-1] <= 1:
        return values.astype(np.uint8)
    if used[-1] in (255, 65535) and set(used[:-1].tolist()) <= {0}:
        return (values > 0).astype(np.uint8)
    half = max(raw.white, raw.black) / 2
    if _is_gray(values, used) or (raw.lossy and used[-1] > half):
        return (values > half).astype(np.uint8)
    if used[-1] > 255:
        raise ValueError(f"it holds the value {used[-1]}, and class indices end at 255")
    return values.astype(np.uint8)


def _from_colour(pixels: np.ndarray, lossy: bool) -> np.ndarray:
    """H x W values of an H x W x 3 mask."""
    brightest = pixels.max(axis=2)
    if lossy or np.array_equal(brightest, pixels.min(axis=2)):
        return brightest
    colours = np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)
    if len(colours[colours.any(axis=1)]) > 1:
        raise ValueError(f"it has {len(colours)} colours, and which class each one means is not known")
    return (brightest > 0).astype(np.uint8)


def _is_gray(values: np.ndarray, used: np.ndarray) -> bool:
    """Whether values are many, reach the upper half of their bits, and neither just count from 0 or 1 nor number areas.

    Cut at one half, nuclei numbered 1 to 60 would be an empty mask that nobody is told of.
    """
    least, most = int(used[0]), int(used[-1])
    counted = most != 255 and least <= 1 and used.size == most - least + 1
    many = used.size > MANY_VALUES and not counted and most > depth_window(used)[1] / 2
    return many and not _numbers_areas(values, least, most)


def _numbers_areas(values: np.ndarray, least: int, most: int) -> bool:
    """Whether values between the ends fill areas that border on each other and on the background in steps, and most of
    what is no background; between the ends of a soft mask lie its borders alone."""
    between = (values != least) & (values != most)
    if 2 * np.count_nonzero(between) < np.count_nonzero(values != least):
        return False
    padded = np.pad(values, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    flat = between & np.logical_and.reduce([values == other for other in neighbours])
    if np.count_nonzero(flat) < FLAT * np.count_nonzero(between):
        return False
    steps = np.concatenate([np.abs(np.diff(values.astype(np.int64), axis=axis)).ravel() for axis in (0, 1)])
    return bool(np.median(steps[steps > 0]) > STEP)


def _used_values(values: np.ndarray) -> np.ndarray:
    """As np.unique; counting is ten times faster than sorting."""
    return np.flatnonzero(np.bincount(values.reshape(-1))) if values.dtype == np.uint8 else np.unique(values)


def _whole_numbers(values: np.ndarray) -> np.ndarray:
    rounded = np.rint(np.nan_to_num(values))
    if not np.allclose(rounded, np.nan_to_num(values), atol=1e-3):
        raise ValueError("it holds fractions")
    return rounded.astype(np.int64)
