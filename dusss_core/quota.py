"""How much may lie in a folder: looked at before anything is written there, by whatever thread of this process."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dusss_core.errors import UserError

_bounds: dict[Path, float] = {}


class NoRoom(UserError):
    """A file would make a folder larger than it may be. Nothing was written."""


@contextmanager
def bounded(folder: Path, most: float | None) -> Iterator[None]:
    """Let `folder` hold no more than `most` bytes while the block runs; None: as much as there is room for."""
    folder = Path(folder).resolve()
    if most is None:
        yield
        return
    _bounds[folder] = most
    try:
        yield
    finally:
        del _bounds[folder]


def room(path: Path) -> float:
    """Bytes that may still be written at `path`; without end where no bound holds for it."""
    path = Path(path).resolve()
    folders = [folder for folder in _bounds if path.is_relative_to(folder)]
    return min((_bounds[folder] - size_of(folder) for folder in folders), default=math.inf)


def check_room(path: Path, size: int) -> None:
    """Refuse to write `size` bytes at `path` where there is no room for them.

    Raises:
        NoRoom: there is none.
    """
    if _bounds and size > room(path):
        raise no_room(path)


def no_room(path: Path) -> NoRoom:
    """What is raised where there is none."""
    return NoRoom(f"{path}: its folder may not become larger", "raise limits.max_disk_gb, or delete what is not needed")


def size_of(folder: Path) -> int:
    """Bytes of all files in `folder`; other processes may remove some meanwhile, and folders of them."""
    size = 0
    for place, folders, files in os.walk(folder):  # passes over a folder that is gone, as Path.rglob does not
        for name in (*folders, *files):
            with suppress(OSError):
                size += (Path(place) / name).lstat().st_size
    return size
