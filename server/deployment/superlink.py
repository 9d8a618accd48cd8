"""flower-superlink for a study of days: python -m server.deployment.superlink FLOWER_ARGUMENTS...

It is Flower's own command, mended in seven places:

- Flower gives a call 5 s to get at its SQLite file, and then answers 500. Models come and go in hundreds of calls that
  all write to it, so on a busy machine this happens, and it ends the SuperNode or the study whose call it was.
- Studies are started by a child process. Without it the SuperLink goes on, and every study that is submitted waits for
  ever. Here both end, so that systemd starts both again.
- A study's process has 30 s for its first call, and then another one is started in its place, without end where a busy
  machine takes longer to import what it needs. Here it has minutes.
- Each chunk of a model is a row of that file, written, read a few times and deleted. In pages of 64 KiB, which are not
  filled with zeros when they are deleted, and are moved from the log to the file less often, that takes a third of the
  processor time and half of the bytes on the disk. A file that is there already keeps the pages that it has.
- uvicorn takes a chunk in pieces: `feddusss.uploads`.
- Hospitals are told which release this is: `feddusss.release`.
- A hospital could answer for another, fill the memory, and lose an answer with a line that broke: `intake`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dusss_core.commandline import complain
from dusss_core.errors import CERTIFICATE, UserError
from feddusss import flower, uploads
from feddusss.release import tell_release
from server.deployment import intake
from server.deployment.certificates import load_certificate

DATABASE_WAIT_S = 60
PAGE_BYTES = 65536
"""SQLite's largest."""
STARTING_S = 300
"""How long a study's process may take until its first call."""
LOG_PAGES = 1000
"""Of SQLite's write-ahead log, after which it is moved into the file."""


def main() -> None:
    """Run flower-superlink with this process's arguments."""
    _check_certificate(sys.argv[1:])

    _tune_the_database()
    _wait_for_what_starts()
    uploads.read_on()
    tell_release()
    intake.install()
    _end_with_the_child()
    sys.argv[0] = "flower-superlink"
    flower.flower_superlink()


def _check_certificate(arguments: list[str]) -> None:
    """Say what to do where the certificate cannot be used: Flower's child that starts studies would end on it."""
    if "--ssl-certfile" not in arguments[:-1]:
        return
    path = Path(arguments[arguments.index("--ssl-certfile") + 1])
    try:
        certificate = load_certificate(path)
    except UserError as error:
        sys.exit(complain(error))
    now, begins, until = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if until < now:
        expired = UserError(
            f"{path.absolute()}: has expired, on {until:%Y-%m-%d %H:%M} UTC",
            "renew it: python -m server renew-certificate; then start the SuperLink again, and let nginx read it",
            CERTIFICATE,
        )
        sys.exit(complain(expired))
    if begins > now:
        early = UserError(
            f"{path.absolute()}: is valid from {begins:%Y-%m-%d %H:%M} UTC on, and this machine's clock says "
            f"{now:%Y-%m-%d %H:%M}",
            "set the clock, then start the SuperLink again",
            CERTIFICATE,
        )
        sys.exit(complain(early))


def _tune_the_database() -> None:
    # the size of pages comes first: it can only be said before anything is written
    ours = {
        "page_size": str(PAGE_BYTES),
        "busy_timeout": str(DATABASE_WAIT_S * 1000),
        "secure_delete": "FAST",
        "wal_autocheckpoint": str(LOG_PAGES),
    }
    flowers = {pragma: value for pragma, value in flower.sql_mixin.SQLITE_PRAGMAS if pragma not in ours}
    flower.stand_in("sql_mixin", "SQLITE_PRAGMAS", tuple({**ours, **flowers}.items()))


def _wait_for_what_starts() -> None:
    """The claim of a process that is started holds one interval, that of one that runs intervals times patience: the
    second stays what it is."""
    interval = flower.stand_in("sql_corestate", "HEARTBEAT_DEFAULT_INTERVAL", STARTING_S)
    patience = flower.sql_corestate.HEARTBEAT_PATIENCE
    flower.stand_in("sql_corestate", "HEARTBEAT_PATIENCE", patience * interval / STARTING_S)


def _end_with_the_child() -> None:

    start = flower.SuperLinkLifespan._start_superexec_if_needed

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

    flower.stand_in("SuperLinkLifespan", "_start_superexec_if_needed", start_and_watch)


if __name__ == "__main__":
    main()
