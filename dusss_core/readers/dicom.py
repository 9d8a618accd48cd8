"""DICOM, through pydicom."""

from __future__ import annotations

import numpy as np

from dusss_core.errors import UserError
from dusss_core.readers.raw import Raw, percentile_window
from dusss_core.readers.reference import Reference


def read_dicom(reference: Reference) -> Raw:
    """Decode one frame of a DICOM file.

    - Stored values become device units by the rescale slope and intercept (or modality table).
    - Black and white are the ends of the first window that the file names; without one, the 0.5 and 99.5
      percentiles of the picture. A sigmoid window is taken for the linear one of the same width.
    - An enhanced file names both in its functional groups: those of the frame, then those that all frames share.
    - MONOCHROME1, in which high values are dark, is inverted.
    - Files of several frames: `file.dcm#3`.
    """
    import pydicom

    dataset = pydicom.dcmread(reference.file)
    if "PixelData" not in dataset:
        raise UserError(f"{reference.file}: a DICOM file without a picture", "drop its row")
    return raw_of_dataset(dataset, reference)


def raw_of_dataset(dataset, reference: Reference) -> Raw:
    """The values of a frame of an open DICOM file, by the rules of `read_dicom`."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    stored = _frame(dataset, reference)
    bits = int(dataset.BitsStored)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(stored, dataset)
        return Raw(colours, 0, float(np.iinfo(colours.dtype).max), bits=bits, indices=stored)
    if stored.ndim == 3:
        return Raw(stored, 0, 2**bits - 1, bits=bits)
    frame = reference.index or 0
    rescaling = _where_it_says(dataset, frame, "PixelValueTransformationSequence", "RescaleSlope")
    values = apply_modality_lut(stored, rescaling)
    named = _window(_where_it_says(dataset, frame, "FrameVOILUTSequence", "WindowWidth"))
    black, white = named or percentile_window(values)
    if photometric == "MONOCHROME1":
        black, white = white, black
    return Raw(values, black, white, bits=bits)


def _frame(dataset, reference: Reference) -> np.ndarray:
    from pydicom.pixels import pixel_array

    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if reference.index is None and frames > 1:
        raise UserError(f"{reference.file}: it has {frames} frames", f"name one: {reference.file.name}#{frames // 2}")
    if reference.index is not None and reference.index >= frames:
        raise UserError(
            f"{reference.file}#{reference.index}: it has {frames} frames, counted from 0",
            "name a frame that exists",
        )
    try:
        return pixel_array(dataset, index=reference.index or 0)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        name = getattr(syntax, "name", syntax)
        raise UserError(
            f"{reference.file}: pixels in '{name}' could not be decoded: {error}",
            "install pylibjpeg with its plugins, or store the file uncompressed",
        ) from error


def _where_it_says(dataset, frame: int, group: str, tag: str):
    """Where a tag of a frame lies: in a functional group of the frame, in one that all frames share (PS3.3 C.7.6.16),
    or, as in every classic file, at the top."""
    own = (dataset.get("PerFrameFunctionalGroupsSequence") or ())[frame : frame + 1]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
    inside = (item for groups in (*own, *shared) for item in (groups.get(group) or ())[:1])
    return next((item for item in inside if item.get(tag) not in (None, "")), dataset)


def _window(dataset) -> tuple[float, float] | None:
    """Ends of the first window, DICOM PS3.3 C.11.2.1.2; None where the file names no usable one."""
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width <= 0:
        return None
    if dataset.get("VOILUTFunction", "LINEAR") == "LINEAR" and width > 1:
        return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    return centre - width / 2, centre + width / 2


def _first(value) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, str | int | float):
        return float(value)
    return float(value[0]) if len(value) else None
