"""The method, in plain torch: it knows neither Flower nor config files, and imports no other room.

student = dusss_core.load("student.safetensors")
mask, probabilities = student.predict("picture.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from dusss_core.student import Student

__all__ = ["load"]


def load(path: Path | str, device: str = "auto") -> Student:
    """A finished student from its file.

    Args:
        path: `student.safetensors` of a run's folder, or a site's own file; never pickle.
        device: auto (a GPU where there is one), cpu, cuda, cuda:N or mps.

    Raises:
        UserError: no student's file, a damaged one, weights that do not fit, or a device that is not there.
    """
    from dusss_core.student.student import load

    return load(path, device)
