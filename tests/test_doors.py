"""The doors between the rooms: who may import whom. Read from the source, so that lazy imports count too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("dusss_core", "feddusss", "sites", "client", "server", "configs")
MAY_IMPORT = {
    "dusss_core": set(),
    "feddusss": {"dusss_core.errors", "dusss_core.config", "dusss_core.files", "dusss_core.phases"},
    "sites": {"dusss_core", "feddusss"},
    "client": {"dusss_core", "feddusss", "sites"},
    "server": {"dusss_core", "feddusss"},
    "server/study": {"dusss_core", "feddusss", "server", "sites.partition", "sites.synth.config"},
    "server/simulation": {"dusss_core", "feddusss", "sites", "client", "server"},
    "configs": set(),
}
LIGHT = (
    "dusss_core/config.py",
    "dusss_core/errors.py",
    "dusss_core/files.py",
    "dusss_core/seeds.py",
    "client/app.py",
    "server/app.py",
    "server/study/config.py",
    "feddusss/cli.py",
    "feddusss/configfile.py",
)
HEAVY = {"torch", "transformers", "monai", "timm", "matplotlib", "opacus", "peft"}


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Modules that a file imports; with `top_level` only those at import time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT).as_posix()
    return next(room for room in sorted(MAY_IMPORT, key=len, reverse=True) if relative.startswith(f"{room}/"))


FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_imports_only_what_it_may(path):
    room = room_of(path)
    allowed = MAY_IMPORT[room] | {room.partition("/")[0]}
    wrong = {
        module
        for module in imports(path)
        if module.partition(".")[0] in ROOMS
        and not any(
            module == door or module.startswith(f"{door}.") or door.startswith(f"{module}.") for door in allowed
        )
    }
    assert not wrong


@pytest.mark.parametrize("name", LIGHT)
def test_what_every_command_imports_is_light(name):
    assert not {module.partition(".")[0] for module in imports(ROOT / name, top_level=True)} & HEAVY


def test_the_method_knows_neither_flower_nor_yaml():
    for path in (ROOT / "dusss_core").rglob("*.py"):
        assert not {module.partition(".")[0] for module in imports(path)} & {"flwr", "yaml"}, path
