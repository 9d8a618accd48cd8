"""The command lines of a document, and whether a program of the project would take them."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^ *(?:> ?)?(```+|~~~+)(\w*)")
_PROGRAM = r"(?:python3? (?:-m (?:server|client|sites|dusss_core|benchmarks)|benchmarks/)|feddusss |make )"
_START = re.compile(rf"(?:^|(?<=  ))(?={_PROGRAM})")
"""Where a command of the project begins in a line: some lines show two, side by side."""
_PREFIX = re.compile(r"^(?:\$ |sudo -\S+ \S+ |(?:[A-Z_]+=\S+ )+|nohup )*")
_DRAWN = re.compile(r"[\u2500-\u257f\u25b6\u25c0]")
SHELL = {"", "sh", "bash", "console", "shell"}


class Command(NamedTuple):
    """A command line, as it stands in a document."""

    document: str
    line: int
    text: str
    whole: bool = True
    """False: named within a sentence, or with `...`: arguments that are needed may be left out."""

    @property
    def words(self) -> list[str]:
        """Program and arguments, without comment, redirection and what follows `&&`, `|` or `;`."""
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars="|&;><")
        lexer.whitespace_split, lexer.commenters = True, "#"
        found = []
        for word in lexer:
            if re.fullmatch(r"[|&;><]+", word):
                break
            found += [word] if word not in ("...", "…") else []
        return found


def documents() -> list[Path]:
    """README, the documents, and those beside README."""
    return [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]


def commands(path: Path) -> list[Command]:
    """Of a document's blocks, fenced and indented, and those named within sentences."""
    return commands_in(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))


def commands_in(name: str, text: str) -> list[Command]:
    """As `commands`, of a text."""
    found = []
    for number, line, block in _joined(text.splitlines()):
        if block:
            line = _PREFIX.sub("", line.strip())
            starts = [place.start() for place in _START.finditer(line)]
            if starts[:1] == [0]:
                parts = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
                found += [Command(name, number, part, whole="..." not in part) for part in parts]
        else:
            spans = re.findall(r"`((?:python -m (?:server|client|sites|dusss_core)|feddusss) [^`]+)`", line)
            found += [Command(name, number, span, whole=False) for span in spans]
    return found


def _joined(lines: list[str]) -> Iterator[tuple[int, str, bool]]:
    """Number, line, and whether it is one of a block of commands; lines that end in a backslash are one."""
    fence, language, held, begun = "", "", "", 0
    for number, line in enumerate(lines, 1):
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence, language = ("", "") if fence else (mark[1], mark[2])
            continue
        block = language in SHELL and not _DRAWN.search(line) if fence else line.startswith("    ")
        text = line.lstrip(" >") if block else line
        if block and text.endswith("\\"):
            held, begun = held + text[:-1] + " ", begun or number
            continue
        yield begun or number, held + text, block
        held, begun = "", 0


class Refused(Exception):
    """The program would not take the command."""


def check(command: Command) -> argparse.Namespace | None:
    """Parse a command's arguments as its program does, and do nothing else.

    Raises:
        Refused: an unknown program, command, option or choice, or an argument that is missing.
    """
    program, *arguments = command.words
    if program == "make":
        return _check_make(arguments)
    main = _main_of(program, arguments)
    arguments = arguments[2:] if arguments[:1] == ["-m"] else arguments if program == "feddusss" else arguments[1:]
    return _parsed(main, arguments, command.whole)


def _main_of(program: str, arguments: list[str]):
    if program == "feddusss":
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"].get("scripts", {})
        if program not in scripts:
            raise Refused("pyproject.toml has no such script")
        module, _, function = scripts[program].partition(":")
        return getattr(importlib.import_module(module), function)
    module = arguments[1] if arguments[0] == "-m" else arguments[0].removesuffix(".py").replace("/", ".")
    if module in ("server", "client", "sites", "dusss_core"):
        module += ".__main__"
    if not (ROOT / (module.replace(".", "/") + ".py")).is_file():
        raise Refused(f"no such module: {module}")
    return importlib.import_module(module).main


class _Parsed(Exception):
    pass


def _parsed(main, arguments: list[str], whole: bool) -> argparse.Namespace | None:
    original = argparse.ArgumentParser.parse_args

    def stop(parser, argv=None, namespace=None):
        raise _Parsed(original(parser, argv, namespace))

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr("sys.argv", ["program", *arguments])
        try:
            if main(arguments) == 0 and arguments == ["--help"]:
                return None  # a page that no parser makes
        except _Parsed as parsed:
            return parsed.args[0]
        except TypeError:
            main()  # takes what it is given from sys.argv
        except SystemExit as end:
            if not end.code or (not whole and "required" in said.getvalue()):
                return None
            raise Refused(said.getvalue().strip().splitlines()[-1]) from None
    raise Refused("it parses nothing")


def _check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    goals = [word for word in arguments if "=" not in word and not word.startswith("-") and word not in ("app",)]
    for goal in goals:
        if not re.search(rf"^{re.escape(goal)}:", makefile, re.MULTILINE):
            raise Refused(f"the Makefile has no {goal}")
