"""make demo and make federation say first what will happen, as the presets have it."""

from __future__ import annotations

import os
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
