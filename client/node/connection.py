"""What a site remembers of its last connection: state_dir/flwr/connected, while the coordinator may count it as there.

The file holds the node's number and which key it was connected with. Its time is when the connection was last alive.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from client.secure.keys import read_public_key
from dusss_core.errors import UserError
from dusss_core.files import write_text

STILL_ONLINE_S = 90.0
"""A SuperLink takes a node that is gone for connected for up to 60 s, and refuses it so long."""
ALIVE_EVERY_S = 5.0
"""Between two signs that the connection is alive."""


@dataclass(frozen=True)
class Connection:
    """A connection that was not ended with a goodbye."""

    node: int
    key: str
    """As `name_of_key` gave it."""
    age_s: float
    """Since it was last known to be alive."""

    def may_be_online(self, key: str) -> bool:
        """Whether the coordinator can still count a site with this key as connected."""
        return self.key == key and abs(self.age_s) < STILL_ONLINE_S


def name_of_key(private_key: Path | None) -> str:
    """Tells one key from another; empty if there is none that can be read."""
    if private_key is None:
        return ""
    with suppress(UserError):
        return hashlib.sha256(read_public_key(private_key).encode()).hexdigest()
    return ""


def remember(home: Path, node: int, key: str) -> None:
    """The coordinator has let this site in."""
    with suppress(UserError):  # a disk that cannot be written: only the wait after a crash is longer without it
        write_text(_marker(home), f"{node} {key}")


def alive(home: Path) -> None:
    """The connection still stands."""
    with suppress(OSError):
        os.utime(_marker(home))


def forget(home: Path) -> None:
    """The coordinator does not count this site as connected: it said goodbye, or its key is no longer accepted."""
    with suppress(OSError):  # a disk that cannot be written
        _marker(home).unlink(missing_ok=True)


def last(home: Path) -> Connection | None:
    """The last connection; None if there was none, or it was forgotten."""
    try:
        node, _, key = _marker(home).read_text(encoding="utf-8").partition(" ")
        return Connection(int(node), key.strip(), time.time() - _marker(home).stat().st_mtime)
    except (OSError, ValueError):
        return None


def _marker(home: Path) -> Path:
    return home / "connected"
