"""docs/architecture.md against the source: rooms and their floors, functions and their files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.test_doors import FLOORS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = ("dusss_core", "feddusss", "sites", "client", "server")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table with this heading, row by row."""
    table = PAGE.partition(heading)[2].partition("\n\n")[0].splitlines()
    return [line.strip("| ").split(" | ") for line in table if line.startswith("| ")]


def named_rooms(room: str) -> list[list[str]]:
    """What a table of inner rooms names in each row, from the top."""
    first = [re.findall(r"`([\w./]+)`", row[0]) for row in rows(f"| `{room}/` | ")]
    return [[name.removesuffix(".py").strip("/") for name in names] for names in first if names]


@pytest.mark.parametrize("room", ["client", "server", "dusss_core", "sites"])
def test_the_tables_name_every_inner_room_in_the_order_of_its_floor(room):
    floors = FLOORS[room].split(" > ")
    floor = {name: number for number, names in enumerate(floors) for name in names.split()}
    named = named_rooms(room)
    assert sorted(name for names in named for name in names) == sorted(floor)
    order = [floor[name] for names in named for name in names]
    assert order == sorted(order)


@pytest.mark.parametrize("room", ["client", "server", "sites"])
def test_the_guide_for_contributors_has_the_same_floors(room):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| Room | Floors, from the top |")[2]
    [row] = re.findall(rf"^\| `{room}/` \| (.*) \|$", text, re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", floor)) for floor in row.split(", ")] == [
        set(floor.split()) for floor in FLOORS[room].split(" > ")
    ]


def places(text: str) -> list[tuple[str, str]]:
    """What the page says of functions: `NAME` (`FILE`), `NAME` and `NAME` (`FOLDER`), `NAME` in `FILE`."""
    name, place = r"`[A-Za-z_][\w.]*`", r"`([\w/]+(?:\.py|/\w+))`"
    found = re.findall(rf"({name}(?:(?:,| and|, and)\s+{name})*)\s+(?:\(|in\s+){place}", text)
    return [(one, lies) for names, lies in found for one in re.findall(r"`([\w.]+)`", names)]


def is_there(name: str, file: str) -> bool:
    """Whether a file whose path ends so, or one in that folder, makes what has that name."""
    for path in (path for room in (*ROOMS, "tests") for path in (ROOT / room).rglob("*.py")):
        name_of_file = f"/{path.relative_to(ROOT).as_posix()}"
        if not (name_of_file.endswith(f"/{file}") or name_of_file.startswith(f"/{file}/")):
            continue
        made = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                made.add(node.name)
            if isinstance(node, ast.ClassDef):
                made |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
            if isinstance(node, ast.Assign):
                made |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                made.add(node.target.id)
        if name in made:
            return True
    return False


def test_every_function_that_the_page_places_in_a_file_is_there():
    found = places(PAGE)
    assert len(found) > 10
    assert not [pair for pair in found if not is_there(*pair)]


def test_a_function_in_another_file_is_seen():
    [pair] = places("`exchange` (`server/rounds/roster.py`)")
    assert not is_there(*pair)
    assert is_there("exchange", "server/rounds/exchange.py") and is_there("Roster.ask", "roster.py")
