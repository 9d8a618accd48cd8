"""make demo and make federation say first what will happen, as the presets have it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from server.study.config import load_study

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("target", ["demo", "federation"])
def test_the_first_three_lines_say_what_happens_and_how_long_it_takes(target):
    study = load_study(target)
    # as from a shell of its own: a make that was started by a make says first which folder it enters
    shell = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    done = subprocess.run(["make", "-n", target], cwd=ROOT, env=shell, capture_output=True, text=True, check=True)
    first = done.stdout.splitlines()[:3]
    assert all(line.startswith("echo ") and len(line) < 130 for line in first)
    assert f"{study.pretrain.rounds} rounds of pretraining, {study.segment.rounds} of segmentation" in first[0]
    assert "minutes" in first[1] and f"runs/{target}/report.html" in first[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("target", ["install", "install-hospital", "install-coordinator"])
def test_what_is_installed_goes_into_the_environment_and_into_no_other_python(target):
    # -B: as where nothing is installed yet
    done = subprocess.run(["make", "-B", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.replace("\\\n", " ").splitlines()
    installing = [line for line in lines if "pip install" in line or "install.sh" in line]
    assert installing and "sudo" not in done.stdout and "--user" not in done.stdout
    ours = re.compile(r'"\.venv/bin/python" -m pip install |sh deploy/install\.sh "\.venv/bin/python" ')
    assert all(ours.match(line) for line in installing)
    assert all('-m venv --clear ".venv"' in line for line in lines if "venv --clear" in line)
    # the script that it hands over to knows no other Python than the one that it is given
    script = (ROOT / "deploy" / "install.sh").read_text()
    assert "python=$1" in script and set(re.findall(r"\S+ -m pip", script)) == {'"$python" -m pip'}
