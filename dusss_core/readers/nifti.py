"""Slices of NIfTI volumes, through nibabel."""

from __future__ import annotations

from pathlib import Path

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
    volume = Volume(reference.file, reference.axis)
    return volume.raw(_index(reference, len(volume)))


class Volume:
    """A volume as pictures along one of the patient's axes, and masks of these pictures laid back into it.

    Raises:
        UserError: it has more than three dimensions.
    """

    def __init__(self, file: Path, axis: str = "z"):
        import nibabel

        self.image = nibabel.load(file)
        shape = self.image.shape + (1,) * (3 - len(self.image.shape))
        if any(length > 1 for length in shape[3:]):
            raise UserError(
                f"{file}: it has {len(shape)} dimensions, {shape}",
                "store each volume of 3 dimensions as its own file",
            )
        self.shape = shape[:3]
        # orientation[i]: the patient's axis that axis i of the array follows, and whether along or against it
        orientation = nibabel.io_orientation(self.image.affine)
        self._axes = [int(axis) for axis in orientation[:, 0]]
        self._position = self._axes.index("xyz".index(axis))
        self._against = [direction < 0 for direction in orientation[:, 1]]

    def __len__(self) -> int:
        return self.shape[self._position]

    def raw(self, index: int) -> Raw:
        """The picture at `index`; only that slice is read."""
        # slicing the proxy reads the slice alone; flat and nested files are small enough to be read whole
        image, plain = self.image, len(self.image.shape) == 3
        values = image.dataobj if plain else np.asanyarray(image.dataobj).reshape(self.shape)
        pixels = self._flipped(np.asanyarray(values[self.key(index)]))
        if self._turned:
            pixels = pixels.T
        picture = np.ascontiguousarray(pixels.T[::-1, ::-1])
        return Raw(picture, *percentile_window(picture), bits=8 * image.get_data_dtype().itemsize)

    def key(self, index: int) -> tuple[slice | int, ...]:
        """Where the picture at `index` lies in the array."""
        stored = len(self) - 1 - index if self._against[self._position] else index
        return tuple(stored if i == self._position else slice(None) for i in range(3))

    def laid_back(self, picture: np.ndarray) -> np.ndarray:
        """A picture as the slice that it is in the array: the inverse of what `raw` does to the pixels."""
        pixels = picture[::-1, ::-1].T
        return self._flipped(pixels.T if self._turned else pixels)

    @property
    def _rest(self) -> list[int]:
        return [i for i in range(3) if i != self._position]

    @property
    def _turned(self) -> bool:
        return self._axes[self._rest[0]] > self._axes[self._rest[1]]

    def _flipped(self, pixels: np.ndarray) -> np.ndarray:
        first, second = (-1 if self._against[i] else 1 for i in self._rest)
        return pixels[::first, ::second]


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
