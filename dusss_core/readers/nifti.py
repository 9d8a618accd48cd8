"""Slices of NIfTI volumes, through nibabel."""

from __future__ import annotations

import numpy as np

from dusss_core.errors import UserError
from dusss_core.readers.raw import Raw, percentile_window
from dusss_core.readers.reference import Reference


def read_nifti(reference: Reference) -> Raw:
    """Decode the slice `volume.nii.gz#z=12`; volumes of a single slice need no number.

    - x, y and z are the patient's axes (sagittal, coronal, axial) and indices run to the right, to the front
      and upwards, whatever the order on the disk, so that a mask stored otherwise than its picture still
      fits.
    - Slices are laid as radiologists see them: front or head at the top, the patient's right at the
      picture's left.
    - Black and white are the 0.5 and 99.5 percentiles of the slice.
    - Only the named slice is read; compressed volumes are still unpacked up to it, every time.
    """
    import nibabel

    volume = nibabel.load(reference.file)
    shape = volume.shape + (1,) * (3 - len(volume.shape))
    if any(length > 1 for length in shape[3:]):
        raise UserError(
            f"{reference.file}: it has {len(shape)} dimensions, {shape}",
            "store each volume of 3 dimensions as its own file",
        )
    # orientation[i]: the patient's axis that axis i of the array follows, and whether along or against it
    orientation = nibabel.io_orientation(volume.affine)
    axes = [int(axis) for axis in orientation[:, 0]]
    wanted = "xyz".index(reference.axis)
    position = axes.index(wanted)
    index = _index(reference, shape[position])
    against = [direction < 0 for direction in orientation[:, 1]]
    stored = shape[position] - 1 - index if against[position] else index
    key = tuple(stored if i == position else slice(None) for i in range(3))
    # slicing the proxy reads the slice alone; flat and nested files are small enough to be read whole
    values = volume.dataobj if len(volume.shape) == 3 else np.asanyarray(volume.dataobj).reshape(shape[:3])
    pixels = np.asanyarray(values[key])
    rest = [i for i in range(3) if i != position]
    flips = [-1 if against[i] else 1 for i in rest]
    pixels = pixels[:: flips[0], :: flips[1]]
    if axes[rest[0]] > axes[rest[1]]:
        pixels = pixels.T
    picture = np.ascontiguousarray(pixels.T[::-1, ::-1])
    return Raw(picture, *percentile_window(np.nan_to_num(picture)), bits=8 * volume.get_data_dtype().itemsize)


def _index(reference: Reference, slices: int) -> int:
    if reference.index is None:
        if slices > 1:
            raise UserError(
                f"{reference.file}: it has {slices} slices along {reference.axis}",
                f"name one: {reference.file.name}#{reference.axis}={slices // 2}",
            )
        return 0
    if reference.index >= slices:
        raise UserError(
            f"{reference.file}#{reference.axis}={reference.index}: it has {slices} slices, counted from 0",
            "name a slice that exists",
        )
    return reference.index
