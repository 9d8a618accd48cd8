"""What is built to be handed on: the source archive, the wheel made from it, and a demo from the wheel alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("client", "configs", "dusss_core", "feddusss", "server", "sites")
SMALLEST = (
    "image.size=32",
    "pretrain.rounds=1",
    "pretrain.steps=1",
    "segment.rounds=1",
    "segment.steps=1",
    "simulation.workers=1",
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def files_of_the_packages() -> set[str]:
    """What lies in the packages, as a wheel names it."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    return {path.relative_to(ROOT).as_posix() for path in paths if path.is_file() and "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The source archive of a copy of the project, and the wheel that is made from this archive."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("built")
    for path in ROOT.iterdir():  # what a build leaves or makes is no part of the project
        if path.name in (*PACKAGES, "docs", "tests", "benchmarks", "deploy"):
            shutil.copytree(path, folder / "copy" / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file() and not path.name.startswith("."):
            (folder / "copy").mkdir(exist_ok=True)
            shutil.copy(path, folder / "copy")
    script = "import sys, setuptools.build_meta as build; print(build.build_sdist(sys.argv[1]))"
    made = subprocess.run(
        [sys.executable, "-c", script, folder], cwd=folder / "copy", check=True, capture_output=True, text=True
    )
    archive = folder / made.stdout.splitlines()[-1]
    with tarfile.open(archive) as source:
        source.extractall(folder / "source", filter="data")
    [source] = (folder / "source").iterdir()
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", folder, source], check=True)
    [wheel] = folder.glob("*.whl")
    return archive, wheel


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel:
        assert {name for name in wheel.namelist() if ".dist-info/" not in name} == files_of_the_packages()


def test_the_source_archive_holds_the_documents_and_the_tests(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "constraints.txt", "requirements-hospital.txt", "docs/deploy.md", "CONTRIBUTING.md"} <= names
    assert "tests/test_wheel.py" in names and not [name for name in names if name.endswith(".pyc")]


def test_the_demo_runs_from_the_wheel_alone_in_an_empty_folder(built, tmp_path):
    """In an environment that has the wheel, and what it depends on, and knows nothing of the repository."""
    home, here = tmp_path / "venv", tmp_path / "empty"
    venv.create(home)
    python = home / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", built[1]],
        check=True,
    )
    [packages] = home.glob("lib/python*/site-packages")
    # the folders alone: what their own .pth files add, such as this repository, is not added
    beside = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages", "extra")]
    (packages / "dependencies.pth").write_text("\n".join(beside) + "\n")
    here.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*words: str) -> str:
        command = [home / "bin" / "feddusss", *words]
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = "import server, sites, configs, client, dusss_core as d; print(server.__file__, sites.__file__, d.__file__)"
    told = subprocess.run([python, "-c", where], cwd=here, env=environment, capture_output=True, text=True, check=True)
    assert all(Path(path).is_relative_to(packages) for path in told.stdout.split())
    run("simulate", "demo", *(word for setting in SMALLEST for word in ("--set", setting)))
    assert (here / "runs" / "demo" / "report.html").is_file()
    assert [path.name for path in here.iterdir()] == ["runs"]
    run("show", "runs/demo/student.safetensors")
