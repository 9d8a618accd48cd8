"""docs/run_files.md describes every file of a run, and every key of its figures."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from server.report.page import write_report
from server.simulation.simulate import simulate
from tests.server.conftest import HOSPITALS, make_study

PAGE = (Path(__file__).parents[3] / "docs" / "run_files.md").read_text(encoding="utf-8")
CEDAR = {"name": "cedar", "train": 0, "val": 0, "test": 5}


def described(heading: str) -> list[str]:
    """What stands in code in the first column of the tables under a heading; the dotted ones by their first part."""
    section = PAGE.split(f"{heading}\n", 1)[1].split("\n## ")[0]
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    return [name for cell in first for name in re.findall(r"`([^`]+)`", cell)]


@pytest.fixture
def run(fake, quiet, tmp_path):
    """With an output beside its files, methods that are compared, and a site that only evaluates."""
    study = make_study([*HOSPITALS, CEDAR], output__tensorboard=True, federation__max_norm_ratio=10)
    simulate(study, tmp_path, reporter=quiet, compare_with="local,supervised")
    write_report(tmp_path)
    return tmp_path


def test_every_file_and_key_of_a_run_is_described(run):
    names = {name.partition("/")[0] for name in described("# The files of a run")}
    there = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert {"metrics.jsonl", "checkpoints", "report.html"} <= there and there - names == set()

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = {key for line in lines for key in line}
    assert len(keys) > 8 and keys - set(described("## metrics.jsonl")) == set()

    summary = json.loads((run / "summary.json").read_text())
    shown = re.search(r"```\n(\{\n.*?\n\})\n```", PAGE, re.DOTALL)[1]
    plain = set(re.findall(r'^  "(\w+)"', shown, re.MULTILINE)) | {"study", "seed"}
    patterns = [*plain, *described("## summary.json")]
    assert [key for key in summary if not any(fnmatch(key, pattern) for pattern in patterns)] == []
