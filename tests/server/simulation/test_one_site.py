"""Promise 1: one site, full sharing: the federation gives bit for bit what plain local training gives."""

from __future__ import annotations

import json

import pytest
import torch

from client.work.workbench import Workbench
from dusss_core.files import read_tensors
from dusss_core.objectives import TABLE
from dusss_core.pretraining import TABLE as PRETRAININGS
from dusss_core.student import read_student
from server.runs.checkpoints import read_model
from server.simulation.local import load_local, train_locally
from server.simulation.simulate import simulate
from tests.dusss_core.objectives.sites import network_for
from tests.server.conftest import HOSPITALS, make_study


def _assert_equal(out, study):
    local = train_locally(study, load_local(out / "sites" / "alder" / "site.yaml", study))
    for name, tensors in (("vlm", local.vlm), ("student", local.student)):
        if tensors is None:  # no pretraining
            continue
        federated = read_model(out / "checkpoints" / f"{name}.safetensors")
        assert federated.keys() == tensors.keys()
        different = [key for key in tensors if not torch.equal(federated[key], tensors[key])]
        assert not different, f"{name}: {different[:5]}"


@pytest.mark.parametrize(
    "changes", [{}, {"study": "falling", "segment__rounds": 6, "segment__patience": 2}], ids=["rounds", "patience"]
)
def test_a_federation_of_one_is_plain_training(fake, quiet, tmp_path, changes):
    study = make_study(HOSPITALS[:1], **changes)
    simulate(study, tmp_path, reporter=quiet)
    _assert_equal(tmp_path, study)


@pytest.mark.parametrize("kept", [True, False], ids=["trainer kept", "state from disk each round"])
def test_a_federation_of_one_is_plain_training_with_the_true_method(quiet, tmp_path, monkeypatch, kept):
    if not kept:
        monkeypatch.setattr("client.work.workbench.workbench", Workbench)
    study = make_study(HOSPITALS[:1], runtime={"channels_last": True})
    simulate(study, tmp_path, reporter=quiet)
    _assert_equal(tmp_path, study)


@pytest.mark.parametrize("objective", [name for name in TABLE if name != "dusss"])
def test_a_federation_of_one_is_plain_training_with_every_objective(quiet, tmp_path, objective):
    student = {"width": 4, "network": network_for({"objective": objective})}
    study = make_study(HOSPITALS[:1], method={"objective": objective}, student=student)
    simulate(study, tmp_path, reporter=quiet)
    _assert_equal(tmp_path, study)


@pytest.mark.parametrize("pretraining", [name for name in PRETRAININGS if name != "dusss"])
def test_a_federation_of_one_is_plain_training_with_every_method_of_step_1(quiet, tmp_path, pretraining):
    study = make_study(HOSPITALS[:1], method={"pretraining": pretraining})
    simulate(study, tmp_path, reporter=quiet)
    _assert_equal(tmp_path, study)


def test_a_federation_of_one_is_plain_training_with_statistics_of_plain_pictures(quiet, tmp_path):
    study = make_study(HOSPITALS[:1], batch_statistics="estimated")
    simulate(study, tmp_path, reporter=quiet)
    _assert_equal(tmp_path, study)


def test_a_federation_of_one_is_plain_training_where_normalisation_layers_stay(quiet, tmp_path):
    study = make_study(HOSPITALS[:1], local_norm=True, runtime={"channels_last": True})
    simulate(study, tmp_path, reporter=quiet, compare_with="local,centralized")
    _, kept = read_student(tmp_path / "students" / "alder.safetensors")
    alone, _ = read_tensors(tmp_path / "compare" / "local" / "alder.safetensors")
    assert kept.keys() == alone.keys()
    different = [key for key in kept if not torch.equal(kept[key], alone[key])]
    assert not different, different[:5]
    summary = json.loads((tmp_path / "summary.json").read_text())
    federated, local = summary["sites"]["alder"], summary["compare"]["local"]["sites"]["alder"]
    assert local["dice"] == federated["dice"]


def test_a_federation_that_forgets_its_optimizer_is_not_plain_training(fake, quiet, tmp_path, monkeypatch):
    monkeypatch.setattr(fake.Segmenter, "load_private", lambda self, tensors: None)
    monkeypatch.setattr("client.work.workbench.workbench", Workbench)
    study = make_study(HOSPITALS[:1])
    simulate(study, tmp_path, reporter=quiet)
    with pytest.raises(AssertionError, match="student"):
        _assert_equal(tmp_path, study)
