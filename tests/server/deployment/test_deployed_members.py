"""Real processes on loopback: a hospital leaves a study that has begun, and another joins it, by one command."""

from __future__ import annotations

import json

import pytest

from tests.server.conftest import HOSPITALS, make_study
from tests.server.deployed import federation, metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_study_goes_on_without_a_hospital_that_left_and_with_one_that_joined(tmp_path):
    study = make_study(
        hospitals=[*HOSPITALS, {**HOSPITALS[0], "name": "cedar"}],
        study="members",
        segment__rounds=30,
        method={"preset": "supervised"},
        federation={"sites": ["alder", "birch"], "min_sites": 2},
    )
    out = tmp_path / "run"
    with federation(tmp_path, study) as there:
        there.start_clients()
        there.run_and_stop_after(out, 2)
        there.clients["birch"].process.end()  # for good
        refused = there.told("run", out / "config.yaml", "--out", out, "--resume", "--without", "birch")
        assert "1 site would be left" in refused and "federation.min_sites is 2" in refused
        done = there.server(
            "run", out / "config.yaml", "--out", out, "--resume", "--without", "birch", "--also", "cedar", log="resumed"
        )
        try:
            assert done.wait(400) == 0, done.output
        finally:
            done.end()
    rounds = {(line["round"], line["site"]) for line in metrics(out) if line["site"] != "*" and "train" in line}
    assert {(1, "alder"), (1, "birch"), (30, "alder"), (30, "cedar")} <= rounds and (30, "birch") not in rounds
    members = json.loads((out / "run.json").read_text())["members"]
    assert [entry["sites"] for entry in members] == [["alder", "birch"], ["alder", "cedar"]]
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["sites"]) == {"alder", "cedar"} and summary["members"] == members
