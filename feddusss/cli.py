"""What the command lines share: --set, --debug, exit codes, no traceback for what a user can mend."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from dusss_core import commandline
from dusss_core.commandline import FAILED, INTERRUPTED, OK, USER_MUST_MEND
from dusss_core.errors import UserError

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "OK",
    "USER_MUST_MEND",
    "add_command",
    "add_common_arguments",
    "add_resume_or_force",
    "check_positive",
    "run",
]


def add_common_arguments(parser: argparse.ArgumentParser, *, overrides: bool = True) -> None:
    """Add --debug, and --set where the command reads a config file."""
    commandline.add_debug(parser)
    if overrides:
        parser.add_argument(
            "--set", dest="overrides", metavar="A.B=C", action="append", default=[], help="override a config key"
        )


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str, example: str
) -> argparse.ArgumentParser:
    """Add a command with a help of its own.

    Args:
        commands: what `add_subparsers` gave.
        run: is called with the arguments, and gives the exit code; None is 0.
        text: what it does, in a few words.
        example: what stands behind its name in a line that could be typed.
    """
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"such as:\n  %(prog)s {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    return parser


def add_resume_or_force(parser: argparse.ArgumentParser, resume: str, force: str) -> None:
    """Add --resume and --force, of which one at most may be given: the one keeps what the other deletes.

    Args:
        resume, force: what each does, for the help.
    """
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help=resume)
    either.add_argument("--force", action="store_true", help=force)


def check_positive(**numbers: int) -> None:
    """Refuse an option that is not a positive number.

    Raises:
        UserError: with the option's name.
    """
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"--{name} {number}: not a positive number", "give 1 or more")


def run(
    main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> int:
    """As `dusss_core.commandline.run`. Nothing here talks to the outside: Flower's telemetry and update check are off
    for every command."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    return commandline.run(main, parser, argv)
