"""The doors between the rooms: who may import whom. Read from the source, so that lazy imports count too."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("dusss_core", "feddusss", "sites", "client", "server", "configs")
MAY_IMPORT = {
    "dusss_core": set(),
    "feddusss": {
        "dusss_core.errors",
        "dusss_core.config",
        "dusss_core.commandline",
        "dusss_core.files",
        "dusss_core.phases",
        "dusss_core.tensorfile",
    },
    "feddusss/command": {"dusss_core.commandline", "feddusss", "server", "client", "sites", "dusss_core"},
    "sites": {"dusss_core", "feddusss"},
    "client": {"dusss_core", "feddusss", "sites"},
    "server": {"dusss_core", "feddusss"},
    "server/study": {"dusss_core", "feddusss", "server", "sites.partition", "sites.synth.config"},
    "server/onemachine": {"dusss_core", "feddusss", "server", "sites.synth.hospitals"},
    "server/simulation": {"dusss_core", "feddusss", "sites", "client", "server"},
    "configs": set(),
}
FLOORS = {
    "client": "__main__ > node > preflight > status studies > app > answer > report > work > privacy > secure > door > "
    "consent > state > declined site_option",
    "server": "__main__ > app > onemachine simulation > deployment > report > rounds > runs > study",
    "dusss_core": "__main__ > export predicting > student > privacy > training > build > objectives > pretraining > "
    "models > losses > text > "
    "augment commandline devices fingerprints inference intervals manifest memory metrics phases pictures readers "
    "records sampling seeds runtime sheets transfer files quota tensorfile config outside errors",
    "sites": "__main__ > check > importers > sheets > dataset > partition > prepare > packing > config > synth",
    "feddusss": "__main__ > command > bundle > cli > configfile > compression standing > wire > "
    "flower monitoring page release secagg terms timeleft uploads",
}
"""Inner rooms and modules of each room, from the top: what stands higher may import what stands lower, never the other
way. Names without a > between them are on one floor."""
LIGHT = (
    "dusss_core/__init__.py",
    "dusss_core/__main__.py",
    "dusss_core/commandline.py",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "dusss_core" / "config").glob("*.py")),
    "dusss_core/errors.py",
    "dusss_core/files.py",
    "dusss_core/seeds.py",
    "dusss_core/tensorfile.py",
    "client/app.py",
    "client/status.py",
    "client/studies.py",
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


def floor_of(module: str) -> int | None:
    """The floor of a module within its room, from the top; None for the room itself."""
    room, _, inner = module.partition(".")
    named = inner.partition(".")[0]
    floors = FLOORS[room].split(" > ") if room in FLOORS else []
    return next((number for number, floor in enumerate(floors) if named in floor.split()), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_imports_what_stands_above_it(path):
    room, _, _ = name_of(path).partition(".")
    own = floor_of(name_of(path))
    floors = {module: floor_of(module) for module in imports(path) if module.startswith(f"{room}.")}
    assert not {module for module, floor in floors.items() if None not in (floor, own) and floor < own}


@pytest.mark.parametrize("room", FLOORS)
def test_every_file_and_inner_room_has_its_floor(room):
    there = {path.stem for path in (ROOT / room).glob("*.py")} - {"__init__"}
    there |= {path.parent.name for path in (ROOT / room).glob("*/__init__.py")}
    named = FLOORS[room].replace(">", "").split()
    assert sorted(named) == sorted(there)


def test_no_module_imports_itself_by_way_of_others():
    modules = {name_of(path): path for path in FILES}
    graph = {name: imported_modules(path, modules) - {name} for name, path in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as cycle:
        pytest.fail(" <- ".join(cycle.args[1]))


def name_of(path: Path) -> str:
    """As it is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, modules: dict[str, Path]) -> set[str]:
    """The project's modules that a file names in its imports; a name that is none is its package's."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}": node.module for alias in node.names}
            found |= {module if module in modules else package for module, package in named.items()}
    return found & modules.keys()


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=name_of)
def test_every_room_says_what_happens_in_it(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_imports_within_the_project_are_absolute():
    """The tests of the doors read no others."""
    for path in FILES:
        assert not any(
            isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(ast.parse(path.read_text("utf-8")))
        ), path


def test_work_gets_judged_requests_and_asks_neither_limits_nor_audit_log_nor_secure_aggregation():
    modules = {name_of(path): path for path in FILES}
    for path in (ROOT / "client" / "work").glob("*.py"):
        asked = {name for name in imported_modules(path, modules) if name.startswith(("client.door", "client.secure"))}
        assert asked <= {"client.door.request", "client.door.machine"}, path


@pytest.mark.parametrize("name", LIGHT)
def test_what_every_command_imports_is_light(name):
    assert not {module.partition(".")[0] for module in imports(ROOT / name, top_level=True)} & HEAVY


def test_the_method_knows_neither_flower_nor_yaml():
    for path in (ROOT / "dusss_core").rglob("*.py"):
        assert not {module.partition(".")[0] for module in imports(path)} & {"flwr", "yaml"}, path


def test_the_protocol_of_secure_aggregation_knows_neither_flower_nor_torch_nor_files():
    for path in (ROOT / "feddusss" / "secagg").rglob("*.py"):
        assert not imports(path) & {"flwr", "torch", "pathlib", "io", "dusss_core.files", "feddusss.wire"}, path
        calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "open"], path
