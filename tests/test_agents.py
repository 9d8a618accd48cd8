"""AGENTS.md: every path, command, option and target that it names is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from client.__main__ import with_defaults
from dusss_core.commandline import commands_of
from feddusss.command.dispatch import whole_parser

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"`([^`\n]+)`", PAGE)
COMMANDS = [
    shlex.split(text)
    for text in QUOTED
    if text.startswith("feddusss ") and "COMMAND" not in text and "--help" not in text
]


@pytest.mark.parametrize("words", [words for words in COMMANDS if len(words) > 3 or "--json" in words], ids=" ".join)
def test_every_command_line_of_the_page_can_be_typed(words):
    rest = ["client", *with_defaults(words[2:])] if words[1] == "client" else words[1:]
    whole_parser().parse_args(rest)


def test_every_command_that_is_named_exists():
    assert len(COMMANDS) > 10
    for words in COMMANDS:
        parser = whole_parser()
        for word in words[1 : 3 if words[1] == "client" else 2]:
            assert word in commands_of(parser), words
            parser = commands_of(parser)[word]


def test_every_path_that_is_named_exists():
    paths = {text for text in QUOTED if re.fullmatch(r"[\w./]+", text) and "/" in text and not text.startswith("runs/")}
    paths |= set(re.findall(r"\]\(([\w./]+)\)", PAGE)) | set(re.findall(r"(?<=\s)tests/[\w./]+", PAGE))
    assert len(paths) > 20 and not [path for path in paths if not (ROOT / path).exists()]


def test_every_target_of_make_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:`|^ +)make ([a-z-]+)", PAGE, re.MULTILINE))
    assert {"demo", "test", "lint"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_files_of_a_run_that_are_named_are_described():
    described = (ROOT / "docs" / "run_files.md").read_text(encoding="utf-8")
    for name in ("summary.json", "events.jsonl", "metrics.jsonl", "config.yaml", "report.html", "student.safetensors"):
        assert name in PAGE and name in described
