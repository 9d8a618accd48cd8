"""flower-superlink with a database that waits: python -m server.deployment.superlink FLOWER_ARGUMENTS...

Flower gives a call 5 s to get at its SQLite file, and then answers 500. Models come and go in hundreds of calls that
all write to it, so on a busy machine this happens, and it ends the SuperNode or the study whose call it was. Everything
else is Flower's own command.
"""

from __future__ import annotations

import sys

DATABASE_WAIT_S = 60


def main() -> None:
    """Run flower-superlink with this process's arguments."""
    from flwr.supercore import sql_mixin
    from flwr.superlink.cli import flower_superlink

    wait = {"busy_timeout": str(DATABASE_WAIT_S * 1000)}
    sql_mixin.SQLITE_PRAGMAS = tuple({**dict(sql_mixin.SQLITE_PRAGMAS), **wait}.items())
    sys.argv[0] = "flower-superlink"
    flower_superlink()


if __name__ == "__main__":
    main()
