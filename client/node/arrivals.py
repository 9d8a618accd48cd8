"""How a site's SuperNode tells its worker that a message has come: by touching state_dir/flwr/arrived.

The worker asks for work over the SuperNode's local API, which costs both some milliseconds; to look at a file's time
costs microseconds, so it is done often. The file is a hint: without it the worker asks as it would anyway.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

LOOK_S = 0.02


def announce(home: Path) -> None:
    """A message has come."""
    with suppress(OSError):
        _file(home).touch()


def seen(home: Path) -> int:
    """What `wait` compares with: tells the announcements so far from the next one."""
    with suppress(OSError):
        return _file(home).stat().st_mtime_ns
    return 0


def wait(home: Path, before: int, most_s: float) -> bool:
    """Wait for an announcement after `before`, for `most_s` seconds at most. Returns whether there was one."""
    give_up = time.monotonic() + most_s
    while seen(home) == before:
        if (left := give_up - time.monotonic()) <= 0:
            return False
        time.sleep(min(LOOK_S, left))
    return True


def _file(home: Path) -> Path:
    return home / "arrived"
