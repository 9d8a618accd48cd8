"""Secure aggregation between real processes: SuperLink with TLS, three clients with keys of their own."""

from __future__ import annotations

import json

import pytest
import torch

from server.runs.checkpoints import read_model
from server.runs.events import Reporter
from server.simulation.simulate import simulate
from tests.server.conftest import HOSPITALS, make_study
from tests.server.deployed import federation, metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

THREE = [{**HOSPITALS[0], "name": name} for name in ("alder", "birch", "cedar")]


def test_real_processes_sum_securely_to_the_weights_of_the_simulation(tmp_path):
    method = {"preset": "mean_teacher"}
    federation_settings = {"secure_aggregation": True, "sites": [hospital["name"] for hospital in THREE]}
    study = make_study(THREE, study="secure", method=method, federation=federation_settings)
    with federation(tmp_path / "there", study) as there:
        there.start_clients()
        told = there.run_to_end(tmp_path / "run")
        assert "Traceback" not in told
        for client in there.clients.values():
            log = [json.loads(line) for line in (client.state_dir / "audit.jsonl").read_text().splitlines()]
            steps = [entry["fields"].get("secure") for entry in log if entry["event"] == "answer"]
            assert [step for step in steps if step] == ["keys", "deal", "masked", "vote", "reveal"] * 2
    simulate(study, tmp_path / "simulated", reporter=Reporter())
    found, wanted = (read_model(tmp_path / name / "checkpoints/student.safetensors") for name in ("run", "simulated"))
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert all(line["accepted"] for line in metrics(tmp_path / "run") if "accepted" in line)
