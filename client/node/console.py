"""What the person at the hospital sees, and the log that keeps it: state_dir/logs/client.log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from dusss_core.outside import shown, shown_lines

LOG_BYTES, LOG_FILES = 2_000_000, 5


class Console:
    """Plain lines, and on a terminal also a line that says what is going on now."""

    def __init__(self, log: logging.Logger, terminal, status):
        self._log = log
        self._terminal = terminal
        self._status = status

    def say(self, text: str) -> None:
        """Tell a person, and keep it."""
        text = shown_lines(text)
        self._log.info(text)
        self._terminal.print(f"{datetime.now():%H:%M:%S} {text}", markup=False, highlight=False, soft_wrap=True)

    def show(self, text: str) -> None:
        """What is going on now; nothing where there is no terminal."""
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(shown(text)))

    def keep(self, text: str) -> None:
        """Keep a line in the log only."""
        self._log.debug(shown_lines(text))


@contextmanager
def open_console(folder: Path) -> Iterator[Console]:
    """A console that keeps its lines in `folder`/client.log, `LOG_FILES` files of `LOG_BYTES` at most."""
    from rich.console import Console as Terminal

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = logging.getLogger("feddusss.client")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    handler = RotatingFileHandler(
        folder / "client.log", maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8"
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    terminal = Terminal()
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
