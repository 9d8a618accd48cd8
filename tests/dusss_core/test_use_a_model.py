"""The commands of docs/use_a_model.md do what the page says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dusss_core.__main__ import main
from tests.dusss_core.student.conftest import student_file  # noqa: F401
from tests.sites.builders import rows_of, write_rows

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/use_a_model.md").read_text(encoding="utf-8")


def commands(heading: str) -> list[str]:
    section = PAGE[PAGE.index(heading) :]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1]
    return [line for line in block.splitlines() if line.startswith("python -m dusss_core ")]


@pytest.fixture
def folder(student_file, tmp_path, monkeypatch):  # noqa: F811
    """What the page takes for granted: a student, pictures, and a data set with masks."""
    student_file("student.safetensors")
    write_rows(tmp_path / "data/manifest.csv", rows_of(tmp_path / "data", 4))
    (tmp_path / "data/images").rename(tmp_path / "pictures")
    (tmp_path / "data/images").symlink_to(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_page_runs_and_leaves_its_files(folder):
    found = commands("## Files and folders")
    assert [shlex.split(line)[3] for line in found] == ["show", "predict", "evaluate", "fit", "export"]
    for line in found:
        assert main(shlex.split(line)[3:]) == 0, line
    for name in ("masks/0.png", "masks/0_overlay.png", "masks/predictions.jsonl", "each.csv", "mine.safetensors"):
        assert (folder / name).is_file(), name
    assert (folder / "README.md").read_text().startswith("---\nlicense:")


ALONE = """
import shlex, socket, sys
from dusss_core.__main__ import main

def refuse(*arguments, **options):
    raise SystemExit("a connection")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
for line in sys.stdin:
    assert main(shlex.split(line)[3:]) == 0, line
others = {"flwr", "server", "client", "sites"} & {name.partition(".")[0] for name in sys.modules}
assert not others, others
"""


def test_a_finished_model_needs_neither_flower_nor_a_coordinator_nor_a_network(folder):
    lines = "\n".join(commands("## Files and folders"))
    there = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", ALONE], input=lines, env=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "README.md").is_file()


def test_the_two_lines_of_the_page_run(folder):
    code, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (folder / "pictures/0.png").rename(folder / "picture.png")
    found: dict = {}
    exec(code, found)
    assert found["mask"].shape == found["probabilities"].shape == (48, 40)


@pytest.mark.slow
def test_the_exports_of_the_page_run(folder):
    found = commands("## Other formats")
    assert len(found) == 2
    for line in found:
        assert main(shlex.split(line)[3:]) == 0, line
    assert (folder / "model.onnx").is_file()
    assert (folder / "model.pt").is_file()
    (folder / "pictures/0.png").rename(folder / "picture.png")
    _, code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    there: dict = {}
    exec(code, there)
    assert there["mask"].shape == (48, 40) and there["probabilities"].shape == (224, 224)
