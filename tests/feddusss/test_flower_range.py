"""A real study runs with either end of the range of Flower's releases, where pip can fetch the other one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from feddusss.flower import RANGE
from tests.deployment import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
RUN = "test_deployed_study.py::test_real_processes_give_the_weights_of_the_simulation"
TESTS = [
    "tests/feddusss/test_flower.py",
    "tests/client/node/test_turns.py",
    "tests/client/door/test_guard.py",
    "tests/server/deployment/test_intake.py",
    f"tests/server/deployment/{RUN}",
]


@pytest.mark.parametrize("release", [f"{first}.{second}" for first, second in RANGE])
def test_a_study_runs_with_either_end_of_the_range(release, tmp_path):
    if version("flwr").startswith(f"{release}."):
        pytest.skip("it is installed, and every other test runs with it")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "flower")]
    if subprocess.run([*install, f"flwr=={release}.*"], capture_output=True, check=False).returncode:
        pytest.skip(f"flwr {release} is not to be had here")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'flower'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "", *TESTS]
    told = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout[-5000:] + told.stderr[-1000:]
