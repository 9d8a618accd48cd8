"""What the documents promise, and the tests that hold it: docs/promises.md, from docsite/promises.yaml.

    python -m docsite.promises            # writes the page
    python -m docsite.promises --check    # exit code 2 if it is not that of the list

    python -m docsite.promises --unlisted # sentences with the words of a promise that the list does not have

A promise that stands in its document no more, or whose test is gone, is refused by name.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dusss_core.errors import UserError
from dusss_core.files import write_text
from feddusss import cli
from feddusss.configfile import read_yaml

ROOT = Path(__file__).parents[1]
LIST, PAGE = ROOT / "docsite" / "promises.yaml", ROOT / "docs" / "promises.md"


class Promise(NamedTuple):
    """One sentence, and what holds it."""

    document: str
    says: str
    tests: list[str]
    """`tests/FILE.py::NAME`."""


def promises(path: Path = LIST) -> list[Promise]:
    """Those of the list, in its order."""
    return [
        Promise(document, entry["says"], entry["tests"])
        for document, entries in read_yaml(path).items()
        for entry in entries
    ]


def broken(promise: Promise) -> str | None:
    """Why nothing holds a promise: the document does not say it, no test is named, or one is not there."""
    if plain(promise.says) not in _said(ROOT / promise.document):
        return f"{promise.document} does not say: {promise.says}"
    if not promise.tests:
        return f"no test holds: {promise.says}"
    missing = [test for test in promise.tests if test.partition("::")[2] not in _tests_of(test.partition("::")[0])]
    return f"{missing[0]}: there is no such test" if missing else None


def plain(text: str) -> str:
    """Without line ends, emphasis, and the signs of code and of lists."""
    return " ".join(re.sub(r"[*`>]", "", text).split())


@cache
def _said(path: Path) -> str:
    return plain(path.read_text(encoding="utf-8")) if path.is_file() else ""


@cache
def _tests_of(file: str) -> frozenset[str]:
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


_WORDS = re.compile(
    r"\b(never|nothing|nobody|refuse[sd]?|cannot|exit code|always|whole|same bytes|last bit|no message)\b"
)


def unlisted() -> list[tuple[str, str]]:
    """Sentences of the listed documents that may be promises, and of which the list has no part."""
    listed = promises()
    found = []
    for document in dict.fromkeys(promise.document for promise in listed):
        says = [plain(promise.says) for promise in listed if promise.document == document]
        for sentence in re.split(r"(?<=[.:]) (?=[A-Z])| \| ", _said(ROOT / document)):
            if _WORDS.search(sentence) and not any(part in sentence or sentence in part for part in says):
                found.append((document, sentence))
    return found


def page() -> str:
    """The page, in Markdown."""
    found = promises()
    lines = [
        "# Promises, and the tests that hold them",
        "",
        "<!-- written by docsite/promises.py from docsite/promises.yaml; change that -->",
        "",
        f"What these documents promise, word for word: {len(found)} sentences. A test fails when a sentence is "
        "changed, or a test that holds it is gone. A figure that was measured once, such as those of "
        "[Results](results.md), is no promise.",
        "",
        "One test: `python -m pytest -m '' FILE -k NAME`, with `FILE` as the column says.",
    ]
    for document in dict.fromkeys(promise.document for promise in found):
        name = document.removeprefix("docs/")
        title = (ROOT / document).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines += ["", f"## [{title}]({name})", "", "| It says | Held by |", "|---|---|"]
        lines += [_row(promise) for promise in found if promise.document == document]
    return "\n".join(lines) + "\n"


def _row(promise: Promise) -> str:
    files: dict[str, list[str]] = {}
    for test in promise.tests:
        file, _, name = test.partition("::")
        files.setdefault(file, []).append(name.removeprefix("test_").replace("_", " "))
    held = "<br>".join(f"{', '.join(names)} (`{file}`)" for file, names in files.items())
    return f"| {promise.says.replace('|', chr(92) + '|')} | {held} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or compare it with the list."""
    parser = argparse.ArgumentParser(prog="python -m docsite.promises", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 2 if the page is not current")
    parser.add_argument("--unlisted", action="store_true", help="write nothing; show what may be a promise too")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_write, parser, argv)


def _write(arguments: argparse.Namespace) -> None:
    wrong = [reason for promise in promises() if (reason := broken(promise))]
    if wrong:
        raise UserError("\n".join(wrong), "mend docsite/promises.yaml, or write the sentence or the test anew")
    if arguments.unlisted:
        for document, sentence in unlisted():
            print(f"{document}: {sentence}")
    elif not arguments.check:
        write_text(PAGE, page())
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        raise UserError(f"{PAGE.name} is not that of {LIST.name}", "python -m docsite.promises")


if __name__ == "__main__":
    sys.exit(main())
