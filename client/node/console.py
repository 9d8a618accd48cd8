"""What the person at the hospital sees, and the log that keeps it: state_dir/logs/client.log."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from dusss_core.files import private_folder
from dusss_core.outside import shown, shown_lines
from feddusss.timeleft import duration, of_steps

LOG_BYTES, LOG_FILES = 2_000_000, 5


class Console:
    """Plain lines, and on a terminal also a line that says what is going on now."""

    def __init__(self, log: logging.Logger, terminal, status):
        self._log = log
        self._terminal = terminal
        self._status = status
        self._what = ""
        self._first: tuple[int, float] | None = None
        """The first step of what goes on now that was told of, and when."""

    def say(self, text: str) -> None:
        """Tell a person, and keep it."""
        text = shown_lines(text)
        self._log.info(text)
        self._terminal.print(f"{datetime.now():%H:%M:%S} {text}", markup=False, highlight=False, soft_wrap=True)

    def show(self, text: str) -> None:
        """What is going on now; nothing where there is no terminal."""
        self._what, self._first = text, None
        self._draw(text)

    def show_step(self, step: int, steps: int) -> None:
        """How far that is: a bar, the step, and how long the other steps take."""
        now = time.monotonic()
        self._first = self._first or (step, now)
        left = of_steps(self._first, step, steps, now)
        told = "" if left is None else f", about {duration(left)} left in this round"
        self._draw(f"{self._what} {_bar(step, steps)} step {step} of {steps}{told}")

    def keep(self, text: str) -> None:
        """Keep a line in the log only."""
        self._log.debug(shown_lines(text))

    def _draw(self, text: str) -> None:
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(shown(text)))


def _bar(step: int, steps: int, width: int = 20) -> str:
    full = width * min(step, steps) // max(1, steps)
    return "━" * full + "╌" * (width - full)


class _Log(RotatingFileHandler):
    """The file, private and bounded. That it cannot be written, and that it can again, is told in a line each.

    Args:
        tell: shows a line to a person.
    """

    def __init__(self, path: Path, tell: Callable[..., None]):
        self._tell = tell
        self._broken = False
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=_private)

    def emit(self, record: logging.LogRecord) -> None:
        before, self._failed = self._broken, False
        super().emit(record)
        self._broken = self._failed
        if before and not self._broken:
            self._say(f"{self.baseFilename} can be written again")

    def handleError(self, record: logging.LogRecord) -> None:
        """In place of a traceback for each line."""
        self._failed = True
        # what is left in it was not written, and is not tried again
        if self.stream is not None:
            with suppress(OSError):
                self.stream.close()
            self.stream = None
        if not self._broken:
            error = sys.exc_info()[1]
            why = getattr(error, "strerror", None) or type(error).__name__
            self._say(
                f"{self.baseFilename} cannot be written: {why}. Nothing leaves this site meanwhile, and studies go on "
                "without it; once its disk can be written again it takes part by itself"
            )

    def close(self) -> None:
        with suppress(OSError):
            super().close()

    def _say(self, text: str) -> None:
        self._tell(f"{datetime.now():%H:%M:%S} {text}", markup=False, highlight=False, soft_wrap=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


@contextmanager
def open_console(folder: Path) -> Iterator[Console]:
    """A console that keeps its lines in `folder`/client.log, `LOG_FILES` files of `LOG_BYTES` at most."""
    from rich.console import Console as Terminal

    private_folder(folder)
    log = logging.getLogger("feddusss.client")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    terminal = Terminal()
    handler = _Log(folder / "client.log", terminal.print)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    status = terminal.status("starting") if terminal.is_terminal else None
    try:
        if status is not None:
            status.start()
        yield Console(log, terminal, status)
    finally:
        if status is not None:
            status.stop()
        log.removeHandler(handler)
        handler.close()
