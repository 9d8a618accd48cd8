"""flower-supernode with the guard: python -m client.supernode STATE_DIR FLOWER_ARGUMENTS...

Started by the supervisor. It runs Flower's own command in this process, because the guard must sit where the bundle
arrives, and because Flower looks for a message every 3 s, which is long for a small model and for the coordinator.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from client.child import end_with_supervisor, tell
from client.guard import guard_supernode, record_refusal


class Pace:
    """How long to wait for a message or an answer: a twentieth of the time waited so far.

    So waiting costs a round at most a twentieth of its length, and an idle site still asks only every 3 s.
    """

    shortest_s = 0.1

    def __init__(self) -> None:
        self._since = time.monotonic()

    def happened(self) -> None:
        """Something came; the next is expected soon."""
        self._since = time.monotonic()

    def sleep(self, most_s: float) -> None:
        """Stands in for time.sleep(most_s)."""
        waited = time.monotonic() - self._since
        time.sleep(min(most_s, max(self.shortest_s, waited / 20)))


def main(argv: Sequence[str]) -> None:
    """Run flower-supernode with the arguments after the first, which is the site's state_dir."""
    end_with_supervisor()
    state_dir, *arguments = argv
    pace, seen = Pace(), []

    def on_poll(found: bool) -> None:
        if not seen:
            seen.append(True)
            tell("connected", "connected to the coordinator")
        if found:
            pace.happened()

    guard_supernode(lambda reason, sha256: _refused(Path(state_dir), reason, sha256), on_poll)

    from flwr.supercore.logger import update_console_handler
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    # the module's only use of `time` is to sleep between looks
    start_client_internal.time = pace
    update_console_handler(colored=False, timestamps=True)
    logging.getLogger("flwr").addHandler(_ConnectionTold())
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()


class _ConnectionTold(logging.Handler):
    """Tells when the coordinator stops to answer, once, and when it answers again."""

    lost = False

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Connection attempt failed") and not self.lost:
            self.lost = True
            tell("say", "the coordinator does not answer; trying again until it does")
        elif message.startswith("Connection successful") and self.lost:
            self.lost = False
            tell("say", "the coordinator answers again")


def _refused(state_dir: Path, reason: str, sha256: str) -> None:
    tell("say", f"refused: {reason}")
    record_refusal(state_dir, reason, sha256)


if __name__ == "__main__":
    main(sys.argv[1:])
