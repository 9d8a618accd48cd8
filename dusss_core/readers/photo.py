"""PNG, JPEG, TIFF, WebP and BMP, through Pillow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageOps

from dusss_core.errors import UserError
from dusss_core.readers.raw import Raw, depth_window, known_values, percentile_window
from dusss_core.readers.reference import Reference

_LOSSY = {"JPEG", "WEBP"}
_PHOTOMETRIC = 262
"""The tag of a TIFF that says what its values mean; 0: 0 is white."""


def read_photo(reference: Reference) -> Raw:
    """Decode a picture.

    - The orientation that a camera wrote into EXIF is applied, so that picture and mask lie alike.
    - An alpha channel is dropped; CMYK and other colour spaces become RGB.
    - 16-bit gray: see `depth_window`. Floating point: as it is when within [0, 1], else by percentiles.
    - A TIFF that says that 0 is white is turned to black, whatever its depth.
    - TIFF files of several pages: `file.tif#2`, the first page otherwise.
    """
    try:
        # Pillow maps a file that it opens itself with the size that it has after turning
        with reference.file.open("rb") as opened, Image.open(opened) as file:
            lossy = file.format in _LOSSY
            if reference.index is not None:
                _go_to_page(file, reference)
            white_is_zero = _white_is_zero(file)
            picture = ImageOps.exif_transpose(file)
            picture.load()
    except Image.DecompressionBombError:
        raise UserError(
            f"{reference.file}: too large to be read whole",
            "cut it into pictures of at most 170 million pixels",
        ) from None
    raw = raw_of_picture(picture, lossy)
    return _negative(raw) if white_is_zero else raw


def raw_of_picture(picture: Image.Image, lossy: bool = False) -> Raw:
    """The values of an open picture, by the rules of `read_photo`."""
    mode = picture.mode
    if mode == "1":
        return Raw(np.asarray(picture, dtype=np.uint8), 0, 1, bits=1)
    if mode == "P":
        return _palette(picture)
    if mode in ("L", "LA"):
        return Raw(np.asarray(picture.getchannel(0)), 0, 255, bits=8, lossy=lossy, alpha_alone=_alpha_alone(picture))
    if mode == "F":
        return _floating(np.asarray(picture))
    if mode.startswith("I"):
        pixels = np.asarray(picture)
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
        if pixels.dtype.kind == "i" and pixels.min(initial=0) >= 0 and pixels.max(initial=0) < 2**16:
            pixels = pixels.astype(np.uint16)  # 16-bit files that Pillow widens to 32
        return Raw(pixels, *depth_window(pixels), bits=16 if pixels.dtype.itemsize == 2 else 32)
    colours = np.asarray(picture.convert("RGB"))
    return Raw(colours, 0, 255, bits=8, lossy=lossy, alpha_alone=_alpha_alone(picture))


def _white_is_zero(file: Image.Image) -> bool:
    """Whether a picture must be turned to black: Pillow does it for 8 bits and less."""
    return file.format == "TIFF" and file.mode[0] in "IF" and file.tag_v2.get(_PHOTOMETRIC) == 0


def _negative(raw: Raw) -> Raw:
    if raw.pixels.dtype == np.uint16:  # as Pillow turns fewer bits: those of a mask too
        return replace(raw, pixels=np.uint16(raw.white) - raw.pixels)
    return replace(raw, black=raw.white, white=raw.black)


def raw_of_array(pixels: np.ndarray) -> Raw:
    """The values of a picture that is in memory, H x W or H x W x 3: the scale follows from the type, as in files.

    Raises:
        ValueError: another shape, or no numbers.
    """
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise ValueError(f"shape {pixels.shape}: a picture is H x W or H x W x 3")
    kind = pixels.dtype.kind
    if kind == "b":
        return Raw(pixels.astype(np.uint8), 0, 1, bits=1)
    if pixels.dtype == np.uint8:
        return Raw(pixels, 0, 255, bits=8)
    if kind in "ui":
        return Raw(pixels, *depth_window(pixels), bits=8 * pixels.dtype.itemsize)
    if kind == "f":
        return _floating(pixels)
    raise ValueError(f"type {pixels.dtype}: a picture holds numbers")


def _alpha_alone(picture: Image.Image) -> bool:
    if picture.mode not in ("LA", "RGBA"):
        return False
    *colours, (least, most) = picture.getextrema()
    return least != most and all(low == high for low, high in colours)


def _go_to_page(file: Image.Image, reference: Reference) -> None:
    pages = getattr(file, "n_frames", 1)
    if reference.index >= pages:
        raise UserError(
            f"{reference.file}#{reference.index}: it has {pages} pages, counted from 0",
            "name a page that exists",
        )
    file.seek(reference.index)


def _palette(picture: Image.Image) -> Raw:
    colours = np.asarray(picture.convert("RGB"))
    plain = colours.max(axis=2)
    black_and_white = np.isin(plain, (0, 255)).all() and np.array_equal(plain, colours.min(axis=2))
    indices = np.asarray(picture)
    by_colour = black_and_white or _black_has_another_index(indices, plain == 0)
    return Raw(colours, 0, 255, bits=8, indices=None if by_colour else indices)


def _black_has_another_index(indices: np.ndarray, black: np.ndarray) -> bool:
    """Whether colours are in the order in which a program met them, black not first: indices are no classes."""
    return bool(black.any()) and 0 not in indices[black]


def _floating(pixels: np.ndarray) -> Raw:
    known = known_values(pixels)
    within = known.size and known.min() >= 0 and known.max() <= 1
    black, white = (0.0, 1.0) if within else percentile_window(pixels)
    return Raw(pixels, black, white, bits=32)
