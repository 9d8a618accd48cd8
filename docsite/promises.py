"""What the documents promise, and the tests that hold it: docs/promises.md, from docsite/promises.yaml.

    python -m docsite.promises            # writes the page
    python -m docsite.promises --check    # exit code 2 if it is not that of the list, or a sentence is in neither list
    python -m docsite.promises --unlisted # sentences with the words of a promise that neither list has

A promise that stands in its document no more, or whose test is gone, is refused by name. docsite/no_promises.yaml has
the sentences that only sound like one, each with the reason: whole, so that one that is changed is read again.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from docsite.sentences import plain, sentences
from dusss_core.errors import UserError
from dusss_core.files import write_text
from feddusss import cli
from feddusss.configfile import read_yaml

ROOT = Path(__file__).parents[1]
LIST, OTHERS = ROOT / "docsite" / "promises.yaml", ROOT / "docsite" / "no_promises.yaml"
PAGE = ROOT / "docs" / "promises.md"
_WORDS = re.compile(
    r"\b(never|nothing|nobody|refuse[sd]?|cannot|exit codes?|always|whole|same bytes|last bit|bit for bit|byte for byte"
    r"|only its owner|owner alone|no message)\b",
    re.IGNORECASE,
)


class Promise(NamedTuple):
    """One sentence, or the part of one that counts, and what holds it."""

    document: str
    says: str
    tests: list[str]
    """`tests/FILE.py::NAME`."""


class NoPromise(NamedTuple):
    """One sentence that only sounds like a promise."""

    document: str
    says: str
    why: str
    """What it is instead: "explains", "measured", "what the reader should do"."""


def promises(path: Path = LIST) -> list[Promise]:
    """Those of the list, in its order."""
    return [Promise(document, entry["says"], entry["tests"]) for document, entry in _entries(path)]


def no_promises(path: Path = OTHERS) -> list[NoPromise]:
    """Those of the other list, in its order."""
    return [NoPromise(document, entry["says"], entry["why"]) for document, entry in _entries(path)]


def _entries(path: Path) -> Iterator[tuple[str, dict]]:
    return ((document, entry) for document, entries in read_yaml(path).items() for entry in entries)


def broken(promise: Promise) -> str | None:
    """Why nothing holds a promise: the document does not say it, no test is named, or one is not there."""
    if plain(promise.says) not in _said(ROOT / promise.document):
        return f"{promise.document} does not say: {promise.says}"
    if not promise.tests:
        return f"no test holds: {promise.says}"
    missing = [test for test in promise.tests if test.partition("::")[2] not in _tests_of(test.partition("::")[0])]
    return f"{missing[0]}: there is no such test" if missing else None


def idle(other: NoPromise) -> str | None:
    """Why an entry excuses nothing: the document has no such sentence, or no reason is given."""
    if plain(other.says) not in _sentences(ROOT / other.document):
        return f"{other.document} has no such sentence: {other.says}"
    return None if other.why else f"no reason is given: {other.says}"


@cache
def _said(path: Path) -> str:
    return plain(path.read_text(encoding="utf-8")) if path.is_file() else ""


@cache
def _tests_of(file: str) -> frozenset[str]:
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    top = ast.parse(path.read_text(encoding="utf-8")).body
    inside = [node for group in top if isinstance(group, ast.ClassDef) for node in group.body]
    return frozenset(node.name for node in top + inside if isinstance(node, ast.FunctionDef))


@cache
def _sentences(path: Path) -> tuple[str, ...]:
    return tuple(sentences(path.read_text(encoding="utf-8"))) if path.is_file() else ()


def documents() -> list[str]:
    """What is read for promises: the README, the page on security, and what people have written under docs/."""
    found = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path.relative_to(ROOT).as_posix() for path in found if _sentences(path)]


def unlisted() -> list[tuple[str, str]]:
    """Sentences of the documents that may be promises, and of which neither list has a part."""
    held, others = promises(), {(other.document, plain(other.says)) for other in no_promises()}
    found = []
    for document in documents():
        said = [promise.says for promise in held if promise.document == document]
        parts = [part for says in said for cell in says.split(" | ") for part in sentences(cell)]
        found += [
            (document, sentence)
            for sentence in _sentences(ROOT / document)
            if _WORDS.search(sentence)
            and (document, sentence) not in others
            and not any(part in sentence for part in parts)
        ]
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
        "changed, a test that holds it is gone, or a document says *never*, *nothing*, *refused* or the like in a "
        "sentence that nobody has read for it. A figure that was measured once, such as those of "
        "[Results](results.md), is no promise.",
        "",
        "One test: `python -m pytest -m '' FILE -k NAME`, with `FILE` as the column says.",
    ]
    for document in dict.fromkeys(promise.document for promise in found):
        title = (ROOT / document).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        inside = document.startswith("docs/")
        heading = f"[{title}]({document.removeprefix('docs/')})" if inside else f"{title}: `{document}`"
        lines += ["", f"## {heading}", "", "| It says | Held by |", "|---|---|"]
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
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 2 if something is missing")
    parser.add_argument("--unlisted", action="store_true", help="write nothing; show what may be a promise too")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_write, parser, argv)


def _write(arguments: argparse.Namespace) -> None:
    wrong = [reason for promise in promises() if (reason := broken(promise))]
    wrong += [reason for other in no_promises() if (reason := idle(other))]
    if wrong:
        remedy = f"mend docsite/{LIST.name} or docsite/{OTHERS.name}, or write the sentence or the test anew"
        raise UserError("\n".join(wrong), remedy)
    if arguments.unlisted:
        for document, sentence in unlisted():
            print(f"{document}: {sentence}")
    elif not arguments.check:
        write_text(PAGE, page())
    elif found := unlisted():
        raise UserError(
            "\n".join(f"{document}: neither a promise nor none: {sentence}" for document, sentence in found),
            f"docsite/{LIST.name}, with the tests that hold it; docsite/{OTHERS.name}, whole, with why it is none",
        )
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        raise UserError(f"{PAGE.name} is not that of {LIST.name}", "python -m docsite.promises")


if __name__ == "__main__":
    sys.exit(main())
