"""The documents are run: their links go somewhere, programs take their command lines, keys and files are there."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from docsite.configuration import keys, kinds
from docsite.links import anchors, slug_of, targets
from tests.docs.commands import ROOT, Command, Refused, check, commands, commands_in, documents

DOCUMENTS = documents()
MESSAGES = {"python -m client is running for this site already"}
"""What a program says, and no command."""


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lost_links(path: Path, text: str) -> list[str]:
    """Relative links of a document to files, or to headings, that are not there."""
    lost = []
    for target in targets(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        lies = (path.parent / name).resolve() if name else path
        there = lies.exists()
        if there and anchor:
            there = anchor in anchors(text if lies == path else lies.read_text(encoding="utf-8"))
        lost += [] if there else [target]
    return lost


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_and_anchor_of_a_document_goes_somewhere(path):
    assert not lost_links(path, path.read_text(encoding="utf-8"))


def test_a_lost_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# Two words\n\n## Two words\n", encoding="utf-8")
    text = (
        "[a](other.md#two-words) [b](other.md#two-words-1) [c](other.md#three) [d](gone.md) [e](#here)\n`[f](x.md)`\n"
    )
    assert lost_links(page, text) == ["other.md#three", "gone.md", "#here"]
    assert slug_of("The accountant (`dusss_core/a.py`): [link](x.md)") == "the-accountant-dusss_coreapy-link"


def all_commands() -> list[Command]:
    return [command for path in DOCUMENTS for command in commands(path) if command.text not in MESSAGES]


def test_there_are_commands_of_every_program():
    found = {" ".join(command.words[:3]) for command in all_commands()}
    for program in ("server", "client", "sites", "dusss_core"):
        assert any(words.startswith(f"python -m {program}") for words in found)
    assert len(all_commands()) > 100


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_a_program_takes_every_command_line_of_a_document(path):
    refused = {}
    for command in commands(path):
        if command.text not in MESSAGES:
            try:
                check(command)
            except Refused as reason:
                refused[f"line {command.line}: {command.text}"] = str(reason)
    assert not refused


WRONG = [
    "python -m server simulat demo",
    "python -m server simulate demo --outt runs/x",
    "python -m server simulate",
    "python -m client approve STUDY --site site.yaml",
    "python -m sites import foldr DIR",
    "python -m dusss_core export student.safetensors --to onxn --out x",
    "python benchmarks/no_such.py",
    "python benchmarks/steps.py --no-such-option",
    "make no-such-goal",
]


@pytest.mark.parametrize("block", ["```sh\n{}  # why\n```\n", "    {}\n", "```sh\nsudo -u feddusss {}\n```\n"])
@pytest.mark.parametrize("line", WRONG)
def test_a_command_line_that_no_program_takes_is_seen(line, block):
    [command] = commands_in("page.md", "text\n\n" + block.format(line))
    with pytest.raises(Refused):
        check(command)


def known_keys() -> dict[str, set[str]]:
    """Dotted keys of each kind of file; `[]` is left out, as a user writes them."""
    return {kind.name: {key.path.replace("[]", "") for key in keys(kind.schema)} for kind in kinds()}


def kind_of(command: Command) -> str:
    words = command.words
    if "client" in words or "check" in words:
        return "site"
    return next((kind for kind in ("partition", "synth") if kind in words), "study")


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_key_that_a_command_line_sets_is_known(path):
    known = known_keys()
    for command in commands(path):
        for option, setting in pairwise(command.words):
            if option == "--set":
                key = setting.partition("=")[0]
                # A.B=C stands for any
                assert key in known[kind_of(command)] or key.isupper(), f"line {command.line}: {key}"


def unknown_keys(values: object, known: set[str], prefix: str = "") -> list[str]:
    """Keys of a piece of YAML that no file of a kind has; what stands below `NAME` is any name."""
    if isinstance(values, list):
        return [key for value in values for key in unknown_keys(value, known, prefix)]
    if not isinstance(values, dict) or f"{prefix}NAME" in known:
        return []
    free = {
        prefix + name for name in values if prefix and prefix.removesuffix(".") in known and not _section(prefix, known)
    }
    lost = [prefix + name for name in values if prefix + name not in known | free]
    return lost + [key for name, value in values.items() for key in unknown_keys(value, known, f"{prefix}{name}.")]


def _section(prefix: str, known: set[str]) -> bool:
    return any(key.startswith(prefix) for key in known)


def blocks(path: Path) -> list[dict]:
    found = re.findall(r"^( *)```ya?ml\n(.*?)^\1```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [yaml.safe_load(text) for _, text in found]


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_piece_of_yaml_has_keys_that_some_file_has(path):
    kinds_ = known_keys().values()
    for values in blocks(path):
        # the rules of deploy.md are Prometheus'
        if values and "groups" not in values:
            assert any(not unknown_keys(values, known) for known in kinds_), values


def test_an_unknown_key_is_seen():
    known = known_keys()
    assert unknown_keys({"limits": {"max_epoch": 3}}, known["site"]) == ["limits.max_epoch"]
    assert unknown_keys({"federation": {"sizes": {"alder": 3}}}, known["study"]) == []


_PATH = re.compile(r"`((?:dusss_core|client|server|sites|feddusss|tests|benchmarks|configs|docs|docsite)/[\w./-]+)`")


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_file_of_the_project_that_a_document_names_is_there(path):
    found = set(_PATH.findall(path.read_text(encoding="utf-8")))
    # capitals stand for a name
    assert not sorted(name for name in found if not re.search("[A-Z]{3}", name) and not (ROOT / name).exists())
