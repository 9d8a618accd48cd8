"""What the processes that `python -m client` starts have in common: they end with it, and they tell it what they do."""

from __future__ import annotations

import os
import re
import signal
import stat
import sys
import threading
import time

GRACE_S = 8.0
"""How long a process has to end by itself. A SuperNode says goodbye to the coordinator in this time."""
_STEP = re.compile(r"\d{1,9} \d{1,9}", re.ASCII)
EVENTS = ("connected", "say", "status", "step")


def tell(event: str, text: str) -> None:
    """Tell the supervisor something, on stdout.

    Args:
        event: connected (once the coordinator has let the site in), say (a person should know), status (shown until
            the next one, and not kept), step (step and steps, with a blank between, of what the last status says).
    """
    print(f"@{event} {' '.join(text.split())}", flush=True)


def heard(line: str) -> tuple[str, str] | None:
    """The event and text in a line that `tell` wrote; None for any other line."""
    event, _, text = line[1:].partition(" ")
    if not line.startswith("@") or event not in EVENTS or (event == "step" and not _STEP.fullmatch(text)):
        return None
    return event, text


def end_with_supervisor() -> None:
    """End this process and all of its group when the supervisor ends, however it ends.

    The supervisor holds the other end of stdin, a pipe that the system closes even after a kill -9.
    """
    if not stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
        return

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-supervisor").start()
