"""The processes of a federation, started by this one and ended with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from server.onemachine.system import MARK
from server.onemachine.warden import end_all

_MALLOC = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}
"""How the C library keeps freed memory: in few places (by default one for each thread, up to eight a core), and no
block of 4 MB or more, of which evaluation has many. Here one machine has all of the processes. A step takes as long as
ever; without the last line, which keeps smaller blocks at hand, it takes a quarter more."""
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Processes:
    """Starts processes; leaving the block ends all of them, and all that they have started."""

    def __init__(self, out: Path):
        self._out = out
        self._started: dict[str, tuple[subprocess.Popen, Path]] = {}

    def start(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start a process whose output goes to `log`. The SuperLink must be the first."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**_MALLOC, **os.environ, MARK: str(self._out), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        self._started[name] = process, log
        with suppress(BrokenPipeError):
            self._warden.stdin.write(b"%d\n" % process.pid)

    def ended(self, name: str) -> int | None:
        """The exit code of a process; negative: the signal that ended it; None: it runs."""
        return self._started[name][0].poll()

    def last_words(self, name: str, lines: int = 12) -> str:
        """The end of what it wrote."""
        text = self._started[name][1].read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Processes:
        self._warden = subprocess.Popen(
            [sys.executable, "-m", "server.onemachine.warden", str(self._out)],
            stdin=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        with _undisturbed():
            self._warden.stdin.close()
            while self._warden.poll() is None:
                self._reap()
                with suppress(subprocess.TimeoutExpired):
                    self._warden.wait(0.1)
            if self._warden.returncode:  # someone has killed it
                end_all(self._out, [process.pid for process, _ in self._started.values()], self._reap)
            self._reap()

    def _reap(self) -> None:
        for process, _ in self._started.values():
            process.poll()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Ctrl-C, `kill` and a terminal that is closed raise KeyboardInterrupt meanwhile."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with _handling(stop):
        yield


@contextmanager
def _undisturbed() -> Iterator[None]:
    with _handling(signal.SIG_IGN):
        yield


@contextmanager
def _handling(handler: object) -> Iterator[None]:
    # under nohup, whose point is that, a terminal that is closed stays ignored
    numbers = [number for number in _STOPS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
