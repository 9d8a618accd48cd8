"""What is kept of one picture and its mask: some numbers of fixed size, never the picture.

May enter: any record of a manifest, its files whole, damaged or absent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dusss_core.errors import UserError
from dusss_core.manifest import Record
from dusss_core.readers import Raw, parse_reference, read_raw, to_classes, to_intensities
from sites.check.identity import tags_of

FORMAT = 3
"""Raised when the same files would give other numbers, so that older ones are not used."""
THUMB = 16
"""Height and width of the picture's thumbnail, which duplicates are compared by."""
ALPHA, EXIF, SUFFIX, NAN, FLAT, SOFT, LOSSY, PAGES = (1 << i for i in range(8))
"""Flags: an alpha channel; a rotation in EXIF; another format than the suffix says; pixels that are no numbers; one
value only; a mask with soft borders; a mask in a lossy format; several pages of which the row names none."""
SMALL_PART = 0.01
"""Parts of a mask that are smaller than this share of its foreground are not counted."""
EIGHT = np.ones((3, 3))
"""Pixels that touch at a corner are of one part."""
DARK = 0.02
"""Intensity, of 1, up to which a pixel is black."""

LOOK = np.dtype(
    [
        ("stamp", "S32"),  # of the files: names, sizes, times
        ("ok", "?"),  # the picture could be read
        ("height", "i4"),
        ("width", "i4"),
        ("bits", "u1"),
        ("mode", "S8"),  # as Pillow names it; gray or colour for other formats
        ("flags", "u1"),
        ("pixels", "S32"),  # hash of the stored values, hexadecimal
        ("hash", "u8"),  # signs of the lowest frequencies of its cosine transform
        ("thumb", "u1", (THUMB, THUMB)),
        ("mean", "f4"),  # of intensities in [0, 1]
        ("spread", "f4"),
        ("black", "f4"),  # share of black pixels
        ("masked", "?"),  # the mask could be read and fits
        ("mask_pixels", "S32"),
        ("covered", "f4"),  # share of foreground pixels
        ("classes", "u1", (32,)),  # a bit for each of 256 class indices
        ("parts", "u2"),  # connected parts of the foreground
        ("lumps", "u2"),  # parts that it falls into when it is worn off from its border: findings that touch are two
        ("left", "f4"),  # share of the foreground in the picture's left half
        ("top", "f4"),
        ("dark", "f4"),  # share of the foreground on black pixels
    ]
)


@dataclass(frozen=True)
class Looked:
    """One record, looked at."""

    look: np.ndarray
    """0-dimensional, LOOK."""
    problems: tuple[tuple[str, str, str], ...] = ()
    """(kind, what, remedy) of what can not be used."""
    tags: tuple[str, ...] = ()
    """Names of filled header fields that may identify a person; never their content."""


def stamp_of(record: Record) -> str:
    """Names the files of a record with their sizes and times: 32 hex digits."""
    named: list[Any] = [FORMAT]
    for path in (record.image, record.mask):
        if path is not None:
            try:
                status = parse_reference(path).file.stat()
                named += [str(path), status.st_size, status.st_mtime_ns]
            except OSError:
                named += [str(path), None]
    return hashlib.blake2b(repr(named).encode(), digest_size=16).hexdigest()


def look_at(record: Record) -> Looked:
    """Read the picture and the mask of a record."""
    look = np.zeros((), LOOK)
    look["stamp"] = stamp_of(record)
    try:
        raw = read_raw(record.image)
        gray = to_intensities(raw, 1)[0]
        if not gray.size:
            raise UserError(f"{record.image}: has no pixels", "drop its row")
        _see_picture(look, raw, gray, record)
    except UserError as error:
        return Looked(look, (("picture_unreadable", error.problem, error.remedy),))
    problems = _see_mask(look, gray, record) if record.mask is not None else []
    return Looked(look, tuple(problems), tags_of(record.image))


def class_indices(look: np.ndarray) -> np.ndarray:
    """Class indices in the mask, the background left out."""
    return np.flatnonzero(np.unpackbits(look["classes"], bitorder="little")[1:]) + 1


def _see_picture(look: np.ndarray, raw: Raw, gray: np.ndarray, record: Record) -> None:
    pixels = np.ascontiguousarray(raw.pixels)
    look["ok"], look["bits"] = True, min(raw.bits, 255)
    look["height"], look["width"] = gray.shape
    look["pixels"] = _digest(pixels)
    look["mode"] = "gray" if raw.pixels.ndim == 2 else "colour"
    flags = FLAT if pixels.min() == pixels.max() else 0
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        flags |= NAN
    look["flags"] = flags | _see_header(look, record)
    look["mean"], look["spread"] = gray.mean(), gray.std()
    look["black"] = (gray <= DARK).mean()
    small = np.asarray(Image.fromarray(gray).resize((2 * THUMB, 2 * THUMB), Image.Resampling.BOX))
    look["hash"] = _hash(small)
    look["thumb"] = np.rint(small.reshape(THUMB, 2, THUMB, 2).mean((1, 3)) * 255)


def _see_header(look: np.ndarray, record: Record) -> int:
    reference = parse_reference(record.image)
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
    if reference.suffix not in (*formats, ".bmp"):
        return 0
    with Image.open(reference.file) as file:
        look["mode"] = file.mode
        flags = ALPHA if file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info else 0
        flags |= EXIF if file.getexif().get(0x0112, 1) != 1 else 0
        flags |= PAGES if getattr(file, "n_frames", 1) > 1 and reference.index is None else 0
        return flags | (SUFFIX if formats.get(reference.suffix, "BMP") != file.format else 0)


def _see_mask(look: np.ndarray, gray: np.ndarray, record: Record) -> list[tuple[str, str, str]]:
    try:
        raw = read_raw(record.mask)
        mask = to_classes(raw)
    except UserError as error:
        return [("mask_unreadable", error.problem, error.remedy)]
    except ValueError as error:
        return [
            ("mask_values", f"{record.mask}: not a mask: {error}", "save masks as gray PNG: 0, 1, 2, ... or 0, 255")
        ]
    if mask.shape != gray.shape:
        sizes = (
            f"{mask.shape[0]} x {mask.shape[1]} pixels (height x width), its picture {gray.shape[0]} x {gray.shape[1]}"
        )
        return [("mask_size", f"mask {record.mask} has {sizes}", "give the mask the size of its picture")]
    counts = np.bincount(mask.reshape(-1), minlength=256)
    look["masked"], look["mask_pixels"] = True, _digest(mask)
    look["covered"] = 1 - counts[0] / mask.size
    look["classes"] = np.packbits(counts > 0, bitorder="little")
    values = np.unique(raw.pixels)
    look["flags"] |= (SOFT if len(values) > max(2, np.count_nonzero(counts)) else 0) | (LOSSY if raw.lossy else 0)
    if counts[0] < mask.size:
        _see_foreground(look, mask > 0, gray)
    return []


def _see_foreground(look: np.ndarray, foreground: np.ndarray, gray: np.ndarray) -> None:
    from scipy.ndimage import distance_transform_edt, label

    total = np.count_nonzero(foreground)
    look["left"] = _first_half(foreground.sum(0)) / total
    look["top"] = _first_half(foreground.sum(1)) / total
    look["dark"] = (gray[foreground] <= DARK).mean()
    sizes = np.bincount(label(foreground, EIGHT)[0].reshape(-1))[1:]
    look["parts"] = min(np.count_nonzero(sizes >= max(2, SMALL_PART * total)), 65535)
    lines, columns = (np.flatnonzero(foreground.any(axis)) for axis in (1, 0))
    box = foreground[lines[0] : lines[-1] + 1, columns[0] : columns[-1] + 1]
    depth = distance_transform_edt(np.pad(box[:: 1 + len(lines) // 256, :: 1 + len(columns) // 256], 1))
    lumps = [label(depth > share * depth.max(), EIGHT)[1] for share in (0.3, 0.5, 0.7)]
    look["lumps"] = min(max(look["parts"].item(), *lumps), 65535)


def _first_half(counts: np.ndarray) -> float:
    """Of the middle one of an odd number, half."""
    middle = len(counts) // 2
    return float(counts[:middle].sum() + (counts[middle] / 2 if len(counts) % 2 else 0))


def _hash(small: np.ndarray) -> int:
    """Signs of the 8 x 8 lowest frequencies of the type-II cosine transform, without the mean: 64 bits.

    Zauner, Implementation and benchmarking of perceptual image hash functions, 2010; here the threshold is 0 in place
    of the median, so that mirror images and quarter turns of a picture are known from its bits.
    """
    n = len(small)
    basis = np.cos(np.pi / n * np.outer(np.arange(8), np.arange(n) + 0.5))
    bits = (basis @ small @ basis.T > 0).reshape(-1)
    bits[0] = False
    return int(np.packbits(bits).view(">u8")[0])


def _digest(pixels: np.ndarray) -> str:
    key = str((pixels.shape, pixels.dtype.str)).encode()
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16, key=key[:64]).hexdigest()
