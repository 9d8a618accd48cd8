"""A run ends with students that load by themselves; what a site keeps to itself is in no file of the coordinator."""

from __future__ import annotations

import json

import pytest
import torch

import dusss_core
from dusss_core.student import read_student, whole_student
from dusss_core.training import at_its_best, evaluate_student, evaluation
from server.runs.checkpoints import read_model
from server.runs.runfolder import read_study
from server.simulation.local import load_local
from server.simulation.simulate import simulate
from tests.server.conftest import make_study

SUPERVISED = {"method": {"preset": "supervised"}, "segment__rounds": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the true method whose normalisation layers stay at the sites."""
    out = tmp_path_factory.mktemp("run")
    simulate(make_study(local_norm=True, **SUPERVISED), out)
    return out


def test_each_sites_student_loads_by_itself_and_has_the_figures_of_the_summary(run):
    study, _ = read_study(run)
    summary = json.loads((run / "summary.json").read_text())
    for name in ("alder", "birch"):
        student = dusss_core.load(run / "students" / f"{name}.safetensors", "cpu")
        assert (student.about.layers, student.about.site) == ("site", name)
        assert student.about.study_digest == summary["config_digest"]
        test = load_local(run / "sites" / name / "site.yaml", study).splits["test"]
        scores = evaluate_student(study.training(), student.tensors(), test, distances=False)
        assert scores["dice"] == pytest.approx(summary["sites"][name]["dice"], abs=1e-6)


def test_the_outsiders_student_is_whole_and_holds_no_layer_of_a_site(run):
    study, _ = read_study(run)
    about, tensors = read_student(run / "student.safetensors")
    assert (about.layers, about.site) == ("unfitted", None)
    shared = read_model(run / "checkpoints" / "student.safetensors")
    start = whole_student(study.training(), shared)
    assert tensors.keys() == start.keys() > shared.keys()
    assert all(torch.equal(tensors[name], start[name]) for name in start)
    own = read_student(run / "students" / "alder.safetensors")[1]
    kept = own.keys() - shared.keys()
    assert kept
    assert any(not torch.equal(own[name], tensors[name]) for name in kept if name.endswith("running_mean"))


def test_a_site_writes_its_student_into_its_private_folder(run):
    (written,) = (run / "sites" / "alder" / "state" / "students").iterdir()
    assert written.read_bytes() == (run / "students" / "alder.safetensors").read_bytes()
    assert "finished student" in (run / "sites" / "alder" / "state" / "log.txt").read_text()


def test_where_layers_are_shared_there_is_one_student_and_it_is_ready(tmp_path, quiet):
    simulate(make_study(**SUPERVISED), tmp_path, reporter=quiet)
    about, tensors = read_student(tmp_path / "student.safetensors")
    assert about.layers == "shared"
    shared = read_model(tmp_path / "checkpoints" / "student.safetensors")
    assert tensors.keys() == shared.keys()
    assert not (tmp_path / "students").exists()


@pytest.mark.parametrize(("followed", "fitted", "taken"), [(0.6, 0.4, "followed"), (0.4, 0.6, "fitted")])
def test_statistics_are_fitted_anew_only_where_that_helps_on_validation(run, monkeypatch, followed, fitted, taken):
    study, _ = read_study(run)
    splits = load_local(run / "sites" / "alder" / "site.yaml", study).splits
    scores = {"followed": followed, "fitted": fitted}

    def evaluate(config, student, split, device, text, *, distances):
        assert split is splits["val"]
        return {"dice": scores[student]}

    monkeypatch.setattr(evaluation, "with_own_statistics", lambda *args: "fitted")
    monkeypatch.setattr(evaluation, "evaluate_student", evaluate)
    assert at_its_best(study.training(), "followed", splits["train"], splits["val"]) == taken


def test_without_masks_to_tell_statistics_are_fitted(run, monkeypatch):
    study, _ = read_study(run)
    splits = load_local(run / "sites" / "alder" / "site.yaml", study).splits
    monkeypatch.setattr(evaluation, "with_own_statistics", lambda *args: "fitted")
    assert at_its_best(study.training(), "followed", splits["train"], splits["val"].select([])) == "fitted"
