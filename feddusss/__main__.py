"""python -m feddusss: the command `feddusss`."""

from __future__ import annotations

import sys

from feddusss.command.dispatch import main

if __name__ == "__main__":
    sys.exit(main())
