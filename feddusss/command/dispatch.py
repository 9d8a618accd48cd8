"""`feddusss COMMAND`: hands what is behind COMMAND to the room whose command it is."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from dusss_core import commandline
from feddusss import __version__
from feddusss.command.table import COMMANDS, COMPLETION, Entry, page

PROG = "feddusss"
SHELLS = ("bash", "zsh", "fish")
_COMPLETING = "_ARGCOMPLETE"
"""argcomplete's: the shell asks what could stand at the cursor."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line `feddusss`; returns the exit code."""
    if _COMPLETING in os.environ:
        import argcomplete

        argcomplete.autocomplete(whole_parser())  # answers the shell, and ends the process
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(page())
        return commandline.OK if argv else commandline.USER_MUST_MEND
    if argv[0] == "--version":
        print(f"{PROG} {__version__}")
        return commandline.OK
    if argv[0] == COMPLETION.name:
        return commandline.run(_completion, _completion_parser(), argv[1:])
    if argv[0] not in COMMANDS:
        return commandline.complain(commandline.no_command(argv[0], PROG, [*COMMANDS, COMPLETION.name]))
    entry = COMMANDS[argv[0]]
    own = [entry.verb] if entry.verb else []
    return _program(entry).main([*own, *argv[1:]], _parser(entry))


def whole_parser() -> argparse.ArgumentParser:
    """All commands of all rooms in one tree."""
    parser = argparse.ArgumentParser(PROG)
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, entry in COMMANDS.items():
        own = _parser(entry)
        commands.choices[name] = commandline.commands_of(own)[entry.verb] if entry.verb else own
    commands.choices[COMPLETION.name] = _completion_parser()
    return parser


def _program(entry: Entry) -> ModuleType:
    return import_module(f"{entry.room}.__main__")


def _parser(entry: Entry) -> argparse.ArgumentParser:
    """The room's own parser, which calls itself and this command as they are called here."""
    if not entry.verb:
        return _program(entry).build_parser(f"{PROG} {entry.name}")
    parser = _program(entry).build_parser(PROG)
    commandline.commands_of(parser)[entry.verb].prog = f"{PROG} {entry.name}"
    return parser


def _completion_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"{PROG} {COMPLETION.name}",
        description="Print what makes a shell complete commands, options and files.",
        epilog=f'bash, in ~/.bashrc:  eval "$({PROG} {COMPLETION.name} bash)"\n'
        f'zsh, in ~/.zshrc:    eval "$({PROG} {COMPLETION.name} zsh)"    # below compinit\n'
        f"fish:                {PROG} {COMPLETION.name} fish > ~/.config/fish/completions/{PROG}.fish",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)
    commandline.add_debug(parser)
    return parser


def _completion(arguments: argparse.Namespace) -> None:
    import argcomplete

    print(argcomplete.shellcode([PROG], shell=arguments.shell))
