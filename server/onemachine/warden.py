"""Ends a federation's processes when the process that started them has ended: python -m server.onemachine.warden OUT

It is told the numbers of the processes on stdin, a pipe that the system closes however its other end is closed, by a
kill -9 too. Each leads a session, so that Ctrl-C in a terminal reaches who started them alone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from server.onemachine.system import marked

GOODBYE_S = 20.0
"""In which a hospital must have ended; its client gives its own processes 8 s, twice."""
SUPERLINK_S = 10.0
SWEEP_S = 5.0


def main(argv: Sequence[str]) -> None:
    """Wait for the end of stdin, then end everything."""
    leaders = [int(line) for line in sys.stdin]
    end_all(Path(argv[0]), leaders)


def end_all(out: Path, leaders: Sequence[int], while_waiting: Callable[[], object] = lambda: None) -> None:
    """End the processes of the federation in `out`: the hospitals, then the SuperLink, then whatever is left.

    Args:
        leaders: the processes that were started, each the leader of its session; the SuperLink comes first.
        while_waiting: called many times a second.
    """
    for group, seconds in ((leaders[1:], GOODBYE_S), (leaders[:1], SUPERLINK_S)):
        for leader in group:
            _signal(leader, signal.SIGTERM)
        _wait(lambda group=group: any(map(_lives, group)), seconds, while_waiting)
        for leader in group:
            _signal(leader, signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in marked(out):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        _wait(lambda: marked(out), SWEEP_S, while_waiting)


def _wait(condition: Callable[[], object], seconds: float, while_waiting: Callable[[], object]) -> None:
    """Until `condition` is false, at most `seconds`."""
    give_up = time.monotonic() + seconds
    while condition() and time.monotonic() < give_up:
        while_waiting()
        time.sleep(0.1)


def _signal(leader: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _lives(leader: int) -> bool:
    """Whether a process is there that has not ended; one that has and was not waited for is none."""
    try:
        os.kill(leader, 0)
        stat = Path(f"/proc/{leader}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    main(sys.argv[1:])
