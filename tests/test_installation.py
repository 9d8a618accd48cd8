"""What a hospital installs is pinned by hash, without developers' tools, also where there is no network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements-hospital.txt"
NOTES = """#!/bin/sh
# Notes how it was called, and makes what pip would make.
echo "$(basename "$0") $*" >> "{calls}"
while [ $# -gt 0 ]; do
    case "$1" in
    -d) echo x > "$2/other-1-py3-none-any.whl" ;;
    -w) echo x > "$2/feddusss-1-py3-none-any.whl" ;;
    esac
    shift
done
"""
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


@pytest.fixture
def tools(tmp_path):
    """Programs that note how they are called; `tools()` gives these lines."""
    calls = tmp_path / "calls"
    for name in ("python", "cyclonedx-py"):
        program = tmp_path / "tools" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(NOTES.format(calls=calls))
        program.chmod(0o755)
    (tmp_path / "tools" / ".installed").touch()
    return lambda: calls.read_text().splitlines()


def make(tmp_path, *words: str) -> str:
    # as from a shell of its own, as in test_make.py
    shell = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    line = ["make", *words, f"TOOLS={tmp_path / 'tools'}", f"WHEELS={tmp_path / 'wheels'}"]
    return subprocess.run(line, cwd=ROOT, env=shell, capture_output=True, text=True, check=True).stdout


def test_a_hospitals_installation_is_of_the_file_with_hashes_and_has_no_tools_of_developers(tmp_path, tools):
    (line,) = [line for line in make(tmp_path, "-n", "install-hospital").splitlines() if "install.sh" in line]
    assert line.split()[-3:] == [LOCK.name, "-e", "."]
    python = tmp_path / "tools" / "bin" / "python"
    subprocess.run(["sh", "deploy/install.sh", str(python), LOCK.name, "-e", "."], cwd=ROOT, check=True)
    packages, project = tools()
    for word in ("--require-hashes", "--only-binary :all:", "--no-deps", f"-r {LOCK.name}"):
        assert word in packages
    assert "--no-deps" in project and project.endswith("-e .") and "[" not in project


def test_the_folder_of_wheels_holds_all_that_the_guide_installs_without_network(tmp_path, tools):
    told = make(tmp_path, "wheels")
    download, build = tools()
    assert "pip download" in download and "--require-hashes" in download and f"-r {LOCK.name}" in download
    assert "pip wheel" in build and "--no-deps" in build
    wheels = tmp_path / "wheels"
    assert (wheels / "requirements.txt").read_bytes() == LOCK.read_bytes()
    listed = {line.split()[1] for line in (wheels / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in wheels.iterdir()} - {"SHA256SUMS"}
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=wheels, check=True)
    summed = subprocess.run(["sha256sum", "SHA256SUMS"], cwd=wheels, capture_output=True, text=True, check=True)
    assert summed.stdout in told, "to be compared on the other machine"
    guide = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    installs = [line for line in guide.splitlines() if "pip install --no-index" in line]
    assert any("--find-links . --require-hashes -r requirements.txt" in line for line in installs)
    assert any(line.endswith("--no-deps feddusss-*.whl") for line in installs) and list(wheels.glob("feddusss-*.whl"))


def test_the_bill_of_materials_is_of_what_a_hospital_installs_and_made_by_a_tool(tmp_path, tools):
    (line,) = [line for line in make(tmp_path, "-n", "sbom").splitlines() if "cyclonedx-py" in line]
    assert f'cyclonedx-py" requirements {LOCK.name}' in line and "--of JSON" in line and line.endswith("-o sbom.json")


def test_the_threat_model_is_a_page_that_names_everybody_and_what_is_not_protected():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    model = text.partition("## Threat model")[2].partition("\n## ")[0]
    assert len(text.splitlines()) < 70
    rows = [line for line in model.splitlines() if line.startswith("|")]
    assert rows[0] == "| Who | Can | Is kept from | By |"
    who = [re.split(r" *\| *", row)[1] for row in rows[2:]]
    for one in ("network", "port", "coordinator", "hospital that lies", "hospitals together", "account", "state_dir"):
        assert any(one in name for name in who), one
    assert "Not protected:" in model
