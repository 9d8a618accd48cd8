"""A study in processes of their own: python -m tests.server.killed_run OUT ROUNDS.

The first one dies at once after so many rounds, the second goes on with the run. Both are forked from one that has only
imported what they need. Prints the exit code of either, and whether the first has left a summary.
"""

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


def in_a_process(out: Path, rounds: int, resume: bool) -> int:
    """The exit code of a process that runs the study."""
    if not (child := os.fork()):
        fake_training.install(pytest.MonkeyPatch())
        simulate(make_study(), out, reporter=Killer(rounds), resume=resume)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(in_a_process(folder, int(sys.argv[2]), resume=False), (folder / "summary.json").exists())
    print(in_a_process(folder, 0, resume=True), (folder / "summary.json").exists())
