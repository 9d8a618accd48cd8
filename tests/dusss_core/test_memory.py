"""Memory that was freed goes back to the system when it is asked to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dusss_core import memory

FREED = """
import os, sys
from pathlib import Path
from dusss_core.memory import give_back

def held():  # bytes
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

pieces = [bytearray(100_000) for _ in range(1000)]
kept = pieces[::20]  # as weights lie among maps, so that no end of the heap is free
del pieces
before = held()
give_back()
print(before - held())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file() or memory._trim() is None, reason="needs Linux and glibc")
def test_what_was_freed_in_pieces_goes_back_to_the_system():
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    given = subprocess.run(
        [sys.executable, "-c", FREED], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert int(given.stdout) > 60_000_000


def test_where_the_c_library_cannot_nothing_happens(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(memory.ctypes, "CDLL", absent)
    memory._trim.cache_clear()
    try:
        memory.give_back()
        assert memory._trim() is None
    finally:
        memory._trim.cache_clear()
