"""What every command line shares: exit codes, --debug, and no traceback for what a user can mend."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from dusss_core.errors import UserError

OK, FAILED, USER_MUST_MEND = 0, 1, 2


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add --debug."""
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def run(
    main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> int:
    """Parse `argv`, call `main` with the result, and turn what happens into an exit code.

    0: fine; 1: it failed; 2: the user must mend something; 130: interrupted.
    """
    arguments = parser.parse_args(argv)
    try:
        return main(arguments) or OK
    except UserError as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return USER_MUST_MEND
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return OK
    except Exception as error:
        if arguments.debug:
            raise
        print(f"failed: {type(error).__name__}: {error}\n  -> run again with --debug to see where", file=sys.stderr)
        return FAILED
