"""Data sets of which nothing but the manifest is read."""

from __future__ import annotations

from pathlib import Path


def empty_picture(folder: Path) -> Path:
    """A new folder with a file in it that nobody opens."""
    folder.mkdir()
    picture = folder / "picture.png"
    picture.touch()
    return picture
