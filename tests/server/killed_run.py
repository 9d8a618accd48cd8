"""A study in a process of its own that dies at a given moment: python -m tests.server.killed_run OUT ROUNDS RESUME."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from server.runs.events import Reporter
from server.simulation.simulate import simulate
from tests.server import fake_training
from tests.server.conftest import make_study


class Killer(Reporter):
    """Ends the process at once after so many rounds."""

    def __init__(self, rounds: int):
        self._rounds = rounds

    def on_round_end(self, *_):
        self._rounds -= 1
        if self._rounds == 0:
            os._exit(9)


if __name__ == "__main__":
    fake_training.install(pytest.MonkeyPatch())
    simulate(make_study(), Path(sys.argv[1]), reporter=Killer(int(sys.argv[2])), resume=sys.argv[3] == "resume")
