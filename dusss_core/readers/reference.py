"""What a manifest's cell names: a file, or one slice, frame or page of it (`ct.nii.gz#z=12`,
`cine.dcm#3`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_PART = re.compile(r"(?P<file>.+\.(?:nii|nii\.gz|dcm|dicom|tif|tiff))#(?:(?P<axis>[xyz])=)?(?P<index>\d+)", re.I)


@dataclass(frozen=True)
class Reference:
    """A picture on the disk."""

    file: Path
    """The file itself."""
    index: int | None = None
    """Slice, frame or page within it, from 0. None: the file holds one picture."""
    axis: str = "z"
    """For volumes: x (sagittal), y (coronal) or z (axial)."""

    @property
    def suffix(self) -> str:
        """Lower-case ending that decides on the reader: `.png`, `.nii.gz`."""
        name = self.file.name.lower()
        return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def parse_reference(path: Path | str) -> Reference:
    """Split `file#axis=index`. A `#` in any other place is part of the file's name."""
    match = _PART.fullmatch(str(path)) if "#" in str(path) else None
    if match is None:
        return Reference(path if isinstance(path, Path) else Path(path))
    return Reference(Path(match["file"]), int(match["index"]), (match["axis"] or "z").lower())
