"""Which files a block opens, for tests of what a message may make a site look at."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager

_touched: list[tuple[str, bool]] | None = None
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _watch(event, arguments):
    if _touched is None:
        return
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _touched.append((os.path.realpath(os.fsdecode(arguments[0])), bool(arguments[2] & _WRITES)))
    elif event in ("socket.connect", "subprocess.Popen", "os.system", "os.exec"):
        _touched.append((f"{event} {arguments}", True))


sys.addaudithook(_watch)


@contextmanager
def touched():
    """Files that are opened in the block, each with whether it is to be written; and connections and programs."""
    global _touched
    _touched = found = []
    try:
        yield found
    finally:
        _touched = None


def check_files(files, site_file, bait):
    state = os.path.realpath(site_file.parent / "state")
    for path, written in files:
        assert not path.startswith(str(bait)), path
        elsewhere = written and not path.startswith((state, "/dev/null"))
        assert not elsewhere or "__pycache__" in path, path
