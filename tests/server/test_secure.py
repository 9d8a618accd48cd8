"""Secure aggregation over the whole line: the coordinator gets sums, and they are those of the sites' updates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

import client.secure
import client.work
from dusss_core.errors import UserError
from dusss_core.files import read_tensors
from feddusss import wire
from feddusss.secagg.fixedpoint import FRACTION_BITS
from server import roster
from server.checkpoints import read_model
from server.config import FederationConfig, StudyConfig
from server.coordinator import RoundFailed
from server.events import Reporter
from server.simulation.simulate import simulate
from tests.server.conftest import HOSPITALS, finals, make_study
from tests.server.unreliable import Listener, coordinate, error

FOUR = [
    {**HOSPITALS[0], "name": name, "train": train}
    for name, train in (("alder", 16), ("birch", 8), ("cedar", 24), ("dogwood", 16))
]
ONE_PHASE = {"method": {"preset": "mean_teacher"}}


@pytest.fixture(autouse=True)
def short(fake, monkeypatch):
    """Nobody waits long in these tests."""
    for name in ("_POLL_S", "_LOOK_S", "_JOIN_S", "_AGAIN_S"):
        monkeypatch.setattr(roster, name, 0.01)


def study(hospitals=FOUR, secure=True, both_phases=False, rounds=2, **federation) -> StudyConfig:
    federation = {"round_timeout_s": 0.05, "start_timeout_s": 0.2, "secure_aggregation": secure, **federation}
    if not secure:
        federation["max_norm_ratio"] = None
    phases = {} if both_phases else ONE_PHASE
    return make_study(hospitals, segment__rounds=rounds, federation=federation, **phases)


def lines(out, round):
    """(site -> its line) of a round of the segment phase."""
    found = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["site"]: line for line in found if line["round"] == round and "accepted" in line}


def students(*folders):
    return [read_model(folder / "checkpoints/student.safetensors") for folder in folders]


def assert_close(secure, plain, atol=2e-6):
    assert secure.keys() == plain.keys()
    for name, tensor in plain.items():
        assert secure[name].dtype == tensor.dtype and secure[name].shape == tensor.shape
        torch.testing.assert_close(secure[name].double(), tensor.double(), rtol=1e-6, atol=atol)


# Sums are right.


@pytest.mark.parametrize(
    "federation",
    [
        {},
        {"strategy": "fedprox"},
        {"strategy": "fedavgm", "momentum": 0.5},
        {"strategy": "fedadam", "server_lr": 0.1},
        {"strategy": "fedyogi", "server_lr": 0.1},
        {"weighting": "uniform"},
    ],
    ids=lambda federation: "-".join(map(str, federation.values())) or "fedavg",
)
def test_a_study_gives_the_models_that_it_gives_without_masks(tmp_path, quiet, federation):
    for name, secure in (("secure", True), ("plain", False)):
        simulate(study(secure=secure, **federation), tmp_path / name, reporter=quiet)
    secure, plain = students(tmp_path / "secure", tmp_path / "plain")
    # counters: the mean, not the largest
    for model in (secure, plain):
        model.pop("norm.num_batches_tracked")
    # Adam divides by the root of a second moment: what differs in the last bit there may differ a little more here
    assert_close(secure, plain, atol=1e-4 if "server_lr" in federation else 2e-6)
