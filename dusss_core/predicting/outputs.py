"""What is written of a prediction: masks as PNG, NIfTI or DICOM SEG, probabilities, and outlines over the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dusss_core.files import write_atomically
from dusss_core.predicting.inputs import Job
from dusss_core.readers import Raw, to_intensities
from dusss_core.readers.nifti import Volume

if TYPE_CHECKING:
    from dusss_core.predicting.segmentation import Segments
    from dusss_core.student import About, Prediction

COLOURS = ((255, 64, 64), (64, 160, 255), (80, 220, 100), (255, 200, 40), (200, 90, 255), (64, 230, 230))
"""Of the outlines, by class; distinct for most who see colours otherwise, by lightness for all."""
_SIXTEEN_BITS = 65535
_PLACE = ("xyzt_units", "qform_code", "sform_code", "qoffset_x", "qoffset_y", "qoffset_z")
_PLACE += ("quatern_b", "quatern_c", "quatern_d", "srow_x", "srow_y", "srow_z")
"""Where a NIfTI volume lies, in its header: in two ways, of which each viewer reads the one that it prefers."""


class Writer:
    """Writes the predictions of one job; `add` for each of its pictures in order, then `finish`.

    Args:
        out: folder of the outputs.
        segments: how classes are coded in DICOM SEG.
    """

    def __init__(self, job: Job, out: Path, about: About, segments: Segments, overlay: bool, probabilities: bool):
        self._job, self._out, self._about, self._segments = job, out, about, segments
        self._overlay, self._probabilities = overlay, probabilities
        self._masks: list[np.ndarray] = []
        self._maps: list[np.ndarray] = []
        self.written: list[str] = []
        self.foreground = 0
        """Pixels, over all pictures."""

    def add(self, raw: Raw, prediction: Prediction) -> None:
        """Take one picture's prediction, and write what is of that picture alone."""
        number = len(self._masks)
        self.foreground += int(np.count_nonzero(prediction.mask))
        if self._job.kind in ("picture", "pages"):
            tail = f"_{number:04d}" if self._job.kind == "pages" else ""
            self._picture(f"{self._job.name}{tail}.png", to_gray(prediction.mask, self._about.image.classes))
            if self._probabilities:
                self._probability_pictures(f"{self._job.name}{tail}", prediction.probabilities)
            self._masks.append(np.zeros(0))
        else:
            tail = f"_{number:04d}"
            self._masks.append(prediction.mask)
            if self._probabilities:
                self._maps.append(prediction.probabilities)
        if self._overlay and (self._job.kind == "picture" or prediction.mask.any()):
            tail = "" if self._job.kind == "picture" else f"_{number:04d}"
            self._picture(f"{self._job.name}{tail}_overlay.png", outlined(raw, prediction.mask))

    def finish(self) -> list[str]:
        """Write what is of all pictures together.

        Returns:
            The names of all that was written, below the output folder.

        Raises:
            UserError: disk full or no permission; a series that DICOM SEG cannot refer to.
        """
        if self._job.kind == "volume":
            self._nifti(f"{self._job.name}.nii.gz", [mask[None] for mask in self._masks], np.uint8)
            if self._probabilities:
                maps = [one if one.ndim == 3 else one[None] for one in self._maps]
                self._nifti(f"{self._job.name}_probabilities.nii.gz", maps, np.float32)
        if self._job.kind == "series":
            from dusss_core.predicting.segmentation import write_segmentation

            maps = self._maps if self._probabilities else None
            for name, dataset in write_segmentation(self._job, self._masks, maps, self._about, self._segments):
                self._save(name, lambda path, dataset=dataset: dataset.save_as(path))
        return self.written

    def discard(self) -> None:
        """Delete what was written: of a job that failed, overlays would lie there without their masks."""
        for name in self.written:
            with suppress(OSError):
                (self._out / name).unlink()

    @cached_property
    def _volume(self) -> Volume:
        return Volume(self._job.files[0])

    def _picture(self, name: str, pixels: np.ndarray) -> None:
        self._save(name, lambda path: Image.fromarray(pixels).save(path, format="PNG"))

    def _probability_pictures(self, name: str, probabilities: np.ndarray) -> None:
        if probabilities.ndim == 2:
            self._picture(f"{name}_probability.png", _deep(probabilities))
            return
        for index, one in enumerate(probabilities):
            self._picture(f"{name}_probability_{index}.png", _deep(one))

    def _nifti(self, name: str, slices: Sequence[np.ndarray], kind: type) -> None:
        import nibabel

        channels = len(slices[0])
        data = np.zeros((*self._volume.shape, channels), kind)
        for index, picture in enumerate(slices):
            for channel in range(channels):
                data[(*self._volume.key(index), channel)] = self._volume.laid_back(picture[channel])
        source = self._volume.image
        data = data.reshape(source.shape) if channels == 1 else data
        image = nibabel.Nifti1Image(data, source.affine, dtype=kind)
        image.header["pixdim"][:4] = source.header["pixdim"][:4]
        for field in _PLACE:
            image.header[field] = source.header[field]

        def write(path: Path) -> None:
            import gzip

            # the temporary name has no suffix that nibabel would know
            path.write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))

        self._save(name, write)

    def _save(self, name: str, write: Callable[[Path], object]) -> None:
        write_atomically(self._out / name, lambda path: write(path) and None)
        self.written.append(name)


def to_gray(mask: np.ndarray, classes: int) -> np.ndarray:
    """A mask as it is stored: one class as 0 and 255, several as their indices; what `read_mask` reads back."""
    return mask * np.uint8(255) if classes == 1 else mask


def outlined(raw: Raw, mask: np.ndarray) -> np.ndarray:
    """The picture with the outline of each class, H x W x 3 uint8."""
    shown = np.rint(to_intensities(raw, 3).transpose(1, 2, 0) * 255).astype(np.uint8)
    width = max(1, min(mask.shape) // 256)
    for index in np.unique(mask[mask > 0]):
        inside = mask == index
        padded = np.pad(inside, width, mode="edge")
        core = inside.copy()
        for shift in range(-width, width + 1):
            rows, columns = slice(width + shift, width + shift + mask.shape[0]), slice(width, width + mask.shape[1])
            core &= padded[rows, columns]
            columns = slice(width + shift, width + shift + mask.shape[1])
            core &= padded[width : width + mask.shape[0], columns]
        shown[inside & ~core] = COLOURS[(int(index) - 1) % len(COLOURS)]
    return shown


def _deep(probabilities: np.ndarray) -> np.ndarray:
    return np.rint(probabilities * _SIXTEEN_BITS).astype(np.uint16)
