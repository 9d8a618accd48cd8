"""flower-superlink for a study of days: python -m server.deployment.superlink FLOWER_ARGUMENTS...

It is Flower's own command, mended in two places:

- Flower gives a call 5 s to get at its SQLite file, and then answers 500. Models come and go in hundreds of calls that
  all write to it, so on a busy machine this happens, and it ends the SuperNode or the study whose call it was.
- Studies are started by a child process. Without it the SuperLink goes on, and every study that is submitted waits for
  ever. Here both end, so that systemd starts both again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

DATABASE_WAIT_S = 60


def main() -> None:
    """Run flower-superlink with this process's arguments."""
    from flwr.superlink.cli import flower_superlink

    _wait_for_the_database()
    _end_with_the_child()
    sys.argv[0] = "flower-superlink"
    flower_superlink()


def _wait_for_the_database() -> None:
    from flwr.supercore import sql_mixin

    wait = {"busy_timeout": str(DATABASE_WAIT_S * 1000)}
    sql_mixin.SQLITE_PRAGMAS = tuple({**dict(sql_mixin.SQLITE_PRAGMAS), **wait}.items())


def _end_with_the_child() -> None:
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan

    start = SuperLinkLifespan._start_superexec_if_needed

    def start_and_watch(self: Any) -> None:
        start(self)
        if self.superexec_process is not None:
            threading.Thread(target=watch, args=(self.superexec_process,), daemon=True).start()

    def watch(child: Any) -> None:
        code = child.wait()
        print(
            f"flower-superexec, which starts studies, ended with code {code}: ending too", file=sys.stderr, flush=True
        )
        os.kill(os.getpid(), signal.SIGTERM)

    SuperLinkLifespan._start_superexec_if_needed = start_and_watch


if __name__ == "__main__":
    main()
