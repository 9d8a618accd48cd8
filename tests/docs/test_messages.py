"""Lines that docs/deploy.md quotes from the screen are the program's own, and what it lists is what there is."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from client.node.ending import Situation, why

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "deploy.md"
ROOMS = ("client", "server", "feddusss", "dusss_core")
LEFT_OUT = re.compile(
    r"…|\b(?:SITE|OTHER|HOST)\b|\b(?:root|feddusss)(?=')|\b(?:birch|lungs)\b|\btraining segment round \d+|\b\d+\b|"
    r"^error:|^running"
)
"""What a quotation leaves open or fills in: names, numbers, the work in hand, how all errors begin, Flower's state."""
ELSEWHERE = (
    "other code under the same number",
    "declined (…): waiting for approval at SITE",
    "running (waiting: birch trains for lungs)",
    "no answer in time: it is busy with lungs (for 3600 s)",
)
"""Quoted outside of a table."""


def quotations(text: str) -> list[str]:
    """In the first column of the tables of what is on the screen."""
    found, inside = [], False
    for line in text.splitlines():
        cell = line.strip("| ").split(" | ")[0]
        if not line.startswith("|"):
            inside = False
        elif re.match(r"Line$|On the screen", cell):
            inside = True
        elif inside and cell.startswith("`"):
            found.append(cell.strip("`"))
    return found


@cache
def texts() -> tuple[frozenset[str], tuple[tuple[str | None, ...], ...]]:
    """All texts of the source, and each f-string: its texts, and None for each value between them."""
    whole, filled = set(), []
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                whole.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                filled.append(tuple(getattr(part, "value", None) if _is_text(part) else None for part in node.values))
    return frozenset(whole - {""}), tuple(filled)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)


def is_said(stretch: str) -> bool:
    """Whether a stretch stands in a text, or goes over values of one f-string, which stand in texts of their own."""
    whole, filled = texts()
    return any(stretch in text for text in whole) or any(
        _goes_on(stretch[end:], parts[place:])
        for parts in filled
        for place, part in enumerate(parts, 1)
        for end in range(1, len(stretch))
        if (stretch[:end] in whole if part is None else part.endswith(stretch[:end]))
    )


def _goes_on(rest: str, parts: tuple[str | None, ...]) -> bool:
    """Whether the rest of a stretch is what the parts of an f-string give from here on."""
    if not rest or not parts:
        return not rest
    if parts[0] is not None:
        return parts[0].startswith(rest) or (rest.startswith(parts[0]) and _goes_on(rest[len(parts[0]) :], parts[1:]))
    whole, _ = texts()
    return any(text.startswith(rest) for text in whole) or any(
        _goes_on(rest[end:], parts[1:]) for end in range(len(rest)) if not end or rest[:end] in whole
    )


def missing(quotation: str) -> str | None:
    """The stretch of a quotation that no file says; None where all of it is said."""
    without_code = re.sub(r" \[FD\d+\]$", "", quotation)  # which goes by where the error comes from
    stretches = [stretch.strip() for stretch in LEFT_OUT.split(without_code)]
    words = [stretch for stretch in stretches if re.search(r"[a-z]{2}", stretch)]
    return next((stretch for stretch in words if not is_said(stretch)), None)


def test_the_tables_of_the_guide_are_found():
    found = quotations(GUIDE.read_text(encoding="utf-8"))
    assert len(found) > 25
    assert {"SITE: registered at the SuperLink", "connected to the coordinator"} <= set(found)


@pytest.mark.parametrize("quotation", [*quotations(GUIDE.read_text(encoding="utf-8")), *ELSEWHERE])
def test_a_line_that_the_guide_quotes_is_one_of_the_program(quotation):
    assert missing(quotation) is None


def test_what_is_quoted_elsewhere_in_the_guide_is_quoted_there():
    guide = " ".join(GUIDE.read_text(encoding="utf-8").split())
    assert not [quotation for quotation in ELSEWHERE if f"`{quotation}`" not in guide]


@pytest.mark.parametrize(
    "quotation",
    [
        "the coordinator does not reply; trying again until it does",
        "SITE: registered with the SuperLink",
        "error: this key says that it belongs to OTHER",
        "nginx.conf: was edited by hand and is kept",
    ],
)
def test_a_line_that_nobody_prints_is_seen(quotation):
    assert missing(quotation) is not None


def subjects(path: Path) -> set[str]:
    """What a part of the preflight says its findings are about."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    named = [call.args[1] for call in calls if call.func.id == "Finding"]
    named += [
        node.value for node in nodes if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "SUBJECT"
    ]
    return {node.value for node in named if isinstance(node, ast.Constant)}


def test_every_subject_of_the_preflight_is_in_the_guides_table_and_no_other():
    table = GUIDE.read_text(encoding="utf-8").partition("| Subject | If it is not ok |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ")[0].split(", ") for line in table.splitlines()[2:]]
    found = set().union(*(subjects(path) for path in (ROOT / "client" / "preflight").glob("*.py")))
    assert {name for row in rows for name in row} == found and len(found) > 15


@pytest.mark.parametrize(
    ("lines", "known"),
    [
        (["what the local API needs could not be written: no room"], {}),
        (["[code: 2004]"], {"may_be_online": True}),
        (["[code: 2004]"], {}),
        (["terminated gracefully"], {}),
        (["terminated gracefully"], {"was_connected": True}),
        (["Failed to initialize the connection", "[SSL: UNEXPECTED_EOF"], {}),
        (["Failed to initialize the connection", "certificate has expired"], {}),
        (["Runtime version compatibility check failed"], {}),
        ([], {}),
    ],
)
def test_every_end_of_a_connection_is_in_the_guides_table(lines, known):
    told = why(Situation(lines, **{"was_connected": False, "may_be_online": False, **known}, public_key="a.pub")).text
    quoted = [re.split(" ?…", quotation)[0] for quotation in quotations(GUIDE.read_text(encoding="utf-8"))]
    assert [text for text in quoted if text and told.startswith(text)]


def test_every_alert_is_about_a_figure_that_is_told():
    [rules] = re.findall(r"^groups:\n.*?(?=^```)", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    figures = set(re.findall(r"feddusss_\w+", rules))
    assert len(figures) > 6
    assert not figures - texts()[0]
