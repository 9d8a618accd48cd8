"""docs/architecture.md, "A method in one file": what it says suffices, and its first command line runs as written."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dusss_core", "feddusss", "sites", "client", "server")
FILE, TABLE, NAMES = (
    Path("dusss_core") / part for part in ("objectives/fixmatch.py", "objectives/__init__.py", "config/method.py")
)
SMALLER = ["image.size=32", "segment.steps=1", "segment.rounds=1", "simulation.workers=1"]
"""A round that takes a moment; what is tested is that there is one."""


def how_to() -> str:
    """The section of the page."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return text.partition("## A method in one file\n")[2].partition("\n## ")[0]


def commands() -> list[list[str]]:
    """The command lines of the section, in words."""
    blocks = re.findall(r"```sh\n(.*?)```", how_to(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def lines_with_the_name(folder: Path) -> dict[Path, list[str]]:
    """Of the packages' modules, those that name the method in a line of code."""
    found = {}
    for package in PACKAGES:
        for path in sorted((folder / package).rglob("*.py")):
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if '"fixmatch"' in line]
            if lines:
                found[path.relative_to(folder)] = lines
    return found


def test_two_lines_name_the_method_and_they_are_those_of_the_page():
    written = re.findall(r"^\| `(?:TABLE|ObjectiveName)` in `(.*?)` \| `(.*?)` \|$", how_to(), re.MULTILINE)
    assert [Path(path) for path, _ in written] == [TABLE, NAMES]
    found = lines_with_the_name(ROOT)
    assert found.keys() == {TABLE, NAMES}
    assert found[TABLE] == [written[0][1]]
    [line] = found[NAMES]
    assert written[1][1] in line
    assert f"`{FILE}`" in how_to() and (ROOT / FILE).is_file()


def test_what_the_page_asks_of_a_method_is_what_there_is_to_answer():
    from dusss_core.objectives.fixmatch import FixMatch
    from dusss_core.objectives.objective import Objective

    asked = {
        name
        for cell in re.findall(r"^\| (`\w+`.*?) \|", how_to(), re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    }
    members = {name for name in vars(Objective) if not name.startswith("_")}
    helpers = {"batches", "weak_views", "moved", "supervised"}
    assert asked - {"TABLE", "ObjectiveName", "__init__", "config"} == members - helpers
    assert {name for name in vars(FixMatch) if not name.startswith("_")} == {"losses", "unlabelled_weight"}
    assert Objective.__abstractmethods__ == {"losses", "unlabelled_weight"}


def test_the_tests_that_the_page_names_hold_this_method():
    paths = {word for words in commands() if "pytest" in words for word in words if word.startswith("tests/")}
    assert len(paths) == 3 and all((ROOT / path).exists() for path in paths)


def copied(folder: Path) -> Path:
    for package in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def take_out(path: Path, text: str) -> str:
    """Remove `text` from a file that has it once; returns what the file was."""
    before = path.read_text(encoding="utf-8")
    assert before.count(text) == 1
    path.write_text(before.replace(text, ""), encoding="utf-8")
    return before


def run(folder: Path, words: list[str]) -> subprocess.CompletedProcess:
    smaller = [word for setting in SMALLER for word in ("--set", setting)]
    command = [sys.executable, *words[1:], *smaller]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_file_table_and_name_are_enough_and_each_is_needed(tmp_path):
    project = copied(tmp_path)
    [first, *_] = commands()
    assert first[:4] == ["python", "-m", "server", "simulate"] and "method.objective=fixmatch" in first
    module = project / FILE
    kept = {module: module.read_text(encoding="utf-8")}
    module.unlink()
    kept[project / TABLE] = take_out(project / TABLE, '    "fixmatch": ("fixmatch", "FixMatch"),\n')
    kept[project / NAMES] = take_out(project / NAMES, '"fixmatch",')
    refused = run(project, first)
    assert refused.returncode == 2 and "'fixmatch' is not known" in refused.stderr, refused.stderr
    assert not (project / "runs").exists()
    for path, text in kept.items():
        path.write_text(text, encoding="utf-8")
    done = run(project, first)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "runs" / "fixmatch" / "checkpoints" / "student.safetensors").is_file()
