"""Readers for pictures and masks of every format; `READERS` says which suffix is read by which function.

A new format is one function from `Reference` to `Raw`, and its suffixes here.

May enter: any file that a manifest names, whole or damaged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dusss_core.errors import UserError
from dusss_core.readers.dicom import read_dicom
from dusss_core.readers.nifti import read_nifti
from dusss_core.readers.photo import raw_of_array, raw_of_picture, read_photo
from dusss_core.readers.raw import Raw, to_classes, to_intensities
from dusss_core.readers.reference import Reference, parse_reference

READERS = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"), read_photo),
    **dict.fromkeys((".dcm", ".dicom"), read_dicom),
    **dict.fromkeys((".nii", ".nii.gz"), read_nifti),
}

__all__ = [
    "READERS",
    "Raw",
    "Reference",
    "parse_reference",
    "raw_of_array",
    "raw_of_picture",
    "read_image",
    "read_mask",
    "read_raw",
    "to_classes",
    "to_intensities",
]


def read_image(path: Path | str, channels: int) -> np.ndarray:
    """The picture as float32, C x H x W, in [0, 1].

    Its scale follows from the file alone (bit depth, DICOM window, percentiles of the picture), never from
    other pictures of the site. Colour becomes gray by the luma of ITU-R BT.601; gray becomes three equal
    channels.

    Args:
        path: a file, or `file#index` for a slice, frame or page; see `dusss_core.readers.reference`.
        channels: 1 or 3.

    Raises:
        UserError: unknown suffix, unreadable or truncated file, slice not named or out of range.
    """
    return to_intensities(read_raw(path), channels)


def read_mask(path: Path | str) -> np.ndarray:
    """The mask as uint8 class indices, H x W; see `dusss_core.readers.raw.to_classes` for the rules.

    Raises:
        UserError: as `read_image`, and values that cannot be class indices.
    """
    try:
        return to_classes(read_raw(path))
    except ValueError as error:
        raise UserError(
            f"{path}: not a mask: {error}",
            "save masks as gray PNG: 0 background, 1, 2, ... the classes, or 0 and 255",
        ) from None


def read_raw(path: Path | str) -> Raw:
    """The stored values of a picture or mask, and which of them stand for black and white.

    Raises:
        UserError: as `read_image`.
    """
    reference = parse_reference(path)
    reader = READERS.get(reference.suffix)
    if reader is None:
        known = ", ".join(sorted(READERS))
        raise UserError(f"{path}: no reader for '{reference.suffix}' files", f"convert it to one of {known}")
    try:
        return reader(reference)
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "check the path") from None
    except Exception as error:  # decoders raise whatever they like on damaged files
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{path}: could not be read: {reason}", "export or copy the file again, or drop its row"
        ) from error
