"""What every command line shares: exit codes, --debug, and no traceback for what a user can mend."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from dusss_core.errors import DISK, OPTION, UserError, told
from dusss_core.outside import printable, shown

OK, FAILED, USER_MUST_MEND, INTERRUPTED = 0, 1, 2, 130


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add --debug."""
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def run(
    main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> int:
    """Parse `argv`, call `main` with the result, and turn what happens into an exit code.

    0: fine; 1: it failed; 2: the user must mend something; 130: interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    if (mistyped := unknown_command(parser, argv)) is not None:
        return complain(mistyped)
    arguments = parser.parse_args(argv)
    _at_home(arguments)
    try:
        return main(arguments) or OK
    except UserError as error:
        if arguments.debug:
            raise
        return complain(error)
    except KeyboardInterrupt as error:
        print(": ".join(["interrupted", *map(str, error.args)]), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return OK
    except Exception as error:
        if arguments.debug:
            raise
        if (mended := of_bad_input(error)) is not None:
            return complain(mended)
        print(
            f"failed: {type(error).__name__}: {printable(told(error))}\n  -> run again with --debug to see where",
            file=sys.stderr,
        )
        return FAILED


def _at_home(arguments: argparse.Namespace) -> None:
    """Take ~ for the home folder in every path, also where the shell leaves it as it is: in --out=~/run."""
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, at_home(value))
        elif isinstance(value, list):
            setattr(arguments, name, [at_home(one) if isinstance(one, Path) else one for one in value])


def at_home(path: Path) -> Path:
    """The path with the home folder in place of a ~ at its start; as it is, where nobody has that name."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def discard(stream: TextIO) -> None:
    """Let all that is still written to a stream that nobody reads go nowhere, at the end of the process too."""
    with suppress(OSError, ValueError):  # it has no file behind it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def complain(error: UserError) -> int:
    """Print, with its code, what a person must mend; the exit code of a command that ends with it."""
    print(f"error: {printable(told(error))}", file=sys.stderr)
    return USER_MUST_MEND


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of a command line, by name; empty for one that has none."""
    return next((action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)), {})


def unknown_command(parser: argparse.ArgumentParser, argv: Sequence[str]) -> UserError | None:
    """The error for a first word that names no command, with the nearest name; None if it names one or is an option."""
    for word in argv:
        commands = commands_of(parser)
        if not commands or word.startswith("-"):
            return None
        if word not in commands:
            return no_command(word, parser.prog, commands)
        parser = commands[word]
    return None


def no_command(word: str, prog: str, commands: Iterable[str]) -> UserError:
    """The error for `word`, which is none of the commands of `prog`."""
    near = difflib.get_close_matches(word, list(commands), n=1)
    meant = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"{prog}: no command '{shown(word, 40)}'", f"{meant}all of them: {prog} --help", OPTION)


def of_bad_input(error: Exception) -> UserError | None:
    """What a file or an argument can do to any reader, wherever it is read; None if the error is another."""
    if isinstance(error, RecursionError):
        return UserError(
            "the input has brackets within brackets without end", "mend it; --debug shows where it is read"
        )
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UserError(f"{shown(error.filename, 100)}: longer than a path may be", "check the path")
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return UserError("a path holds a character of code 0", "check the paths that were given, in files too")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        place = f"{shown(error.filename)}: " if error.filename else ""
        return UserError(f"{place}too many files are open", "allow more: ulimit -n 4096; the file itself may be well")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f"{shown(error.filename)}: " if error.filename else ""
        return UserError(f"{place}{error.strerror}", "free disk space; a run then goes on with --resume", DISK)
    return None
