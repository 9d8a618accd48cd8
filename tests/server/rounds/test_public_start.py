"""Public weights and layers that stay at the sites: every site starts from them, whenever it comes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import dusss_core
from client.state.store import SiteState
from dusss_core.build import build_student
from dusss_core.errors import UserError
from dusss_core.files import digest_of_tensors, write_tensors
from dusss_core.models.weights import head_names, local_tensors
from dusss_core.phases import Phase
from dusss_core.student import read_student
from dusss_core.training import Segmenter, start_of
from feddusss import configfile
from server.deployment.initial import first_weights
from server.rounds.messages import Messages
from server.runs.checkpoints import read_model
from server.runs.events import Reporter
from server.runs.runfolder import read_study
from server.simulation.local import load_local, train_locally
from server.simulation.simulate import simulate
from tests.server.conftest import HOSPITALS, finals, make_study
from tests.server.rounds.test_resume import Killed, Killer

CEDAR = {"name": "cedar", "train": 0, "val": 0, "test": 5}
"""It only evaluates, so that it never has layers of its own."""
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """Weights of a student that nobody would draw from a seed."""
    model = build_student(make_study())
    tensors = {name: value + 0.25 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    path = tmp_path_factory.mktemp("public") / "weights.safetensors"
    write_tensors(path, tensors)
    return path, tensors


def make(public, hospitals=HOSPITALS, **changes):
    student = {"width": 4, "weights": str(public[0])}
    common = {"method": {"preset": "supervised"}, "local_norm": True, "student": student}
    return make_study(hospitals, **{**common, **changes})


@pytest.fixture(scope="module")
def run(public, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "run"
    simulate(make(public, [*HOSPITALS, CEDAR]), folder, reporter=Reporter())
    return folder


def test_what_stays_at_the_sites_is_brought_where_it_is_of_public_weights(public):
    study = make(public)
    start = start_of(study, Phase.SEGMENT)
    norms = local_tensors(build_student(study.training()), local_norm=True)
    assert start.layers.keys() == norms.keys() and not start.layers.keys() & start.shared.keys()
    assert all(torch.equal(value, public[1][name]) for name, value in {**start.shared, **start.layers}.items())
    assert not start_of(make(public, local_norm=False), Phase.SEGMENT).layers
    assert not start_of(make_study(local_norm=True), Phase.SEGMENT).layers
    assert not start_of(study, Phase.PRETRAIN).layers


def test_a_head_of_each_site_starts_from_the_file_too(public):
    study = make(public, local_norm=False, personal="fedrep")
    start = start_of(study, Phase.SEGMENT)
    assert start.layers.keys() == head_names(build_student(study), study.personal.own_head)
    assert all(torch.equal(value, public[1][name]) for name, value in start.layers.items())


def test_no_head_is_brought_that_public_weights_of_an_encoder_do_not_hold():
    study = make_study(
        personal="fedrep", student={"width": 4, "encoder": "tf_efficientnet_lite0", "weights": "imagenet"}
    )
    assert not start_of(study, Phase.SEGMENT).layers


def test_a_federation_of_one_is_plain_training_from_the_same_weights(public, quiet, tmp_path):
    study = make(public, HOSPITALS[:1], federation__select="last")
    simulate(study, tmp_path / "run", reporter=quiet)
    site = tmp_path / "run" / "sites" / "alder"
    student = read_model(tmp_path / "run" / "checkpoints" / "student.safetensors")
    run_key = json.loads((tmp_path / "run" / "run.json").read_text())["run_key"]
    local = SiteState(site / "state", study.study, run_key).local_layers(Phase.SEGMENT, 2)
    plain = train_locally(study, load_local(site / "site.yaml", study)).student
    assert local and {*student, *local} == plain.keys()
    # statistics are estimated anew where a global model arrives, and training does not read them
    learnt = {name: value for name, value in {**student, **local}.items() if not name.endswith(_STATISTICS)}
    assert learnt and all(torch.equal(value, plain[name]) for name, value in learnt.items())


def test_a_run_that_was_killed_goes_on_without_the_file(public, quiet, tmp_path):
    file = tmp_path / "weights.safetensors"
    shutil.copy(public[0], file)
    study = make((file, public[1]))
    simulate(study, tmp_path / "straight", reporter=quiet)
    with pytest.raises(Killed):
        simulate(study, tmp_path / "killed", reporter=Killer("on_round_end", 1))
    file.unlink()
    simulate(study, tmp_path / "killed", resume=True, reporter=quiet)
    assert finals(tmp_path / "killed") == finals(tmp_path / "straight")
    outside = [read_student(tmp_path / run / "student.safetensors")[1] for run in ("straight", "killed")]
    assert digest_of_tensors(outside[0]) == digest_of_tensors(outside[1])


def test_a_site_that_lost_its_state_starts_from_them_again(public, quiet, tmp_path):
    study = make(public)
    with pytest.raises(Killed):
        simulate(study, tmp_path, reporter=Killer("on_round_end", 1))
    shutil.rmtree(tmp_path / "sites" / "birch" / "state" / "studies")
    simulate(study, tmp_path, resume=True, reporter=quiet)
    run_key = json.loads((tmp_path / "run.json").read_text())["run_key"]
    found = SiteState(tmp_path / "sites" / "birch" / "state", study.study, run_key).local_layers(Phase.SEGMENT, 2)
    scales = [name for name in found if name.endswith(".weight")]
    # one step of 1e-3 away; a layer that a seed draws has ones
    assert scales and all(torch.allclose(found[name], public[1][name], atol=0.01) for name in scales)


def test_a_site_without_layers_of_its_own_fits_those_of_the_public_weights(run, public):
    about, tensors = read_student(run / "students" / "cedar.safetensors")
    assert about.layers == "fitted"
    study, _ = read_study(run)
    layers = local_tensors(build_student(study.training()), local_norm=True)
    affine = [name for name in layers if name.endswith((".weight", ".bias"))]
    assert affine and all(torch.equal(tensors[name], public[1][name]) for name in affine)
    outsider = read_student(run / "student.safetensors")[1]
    assert all(torch.equal(outsider[name], public[1][name]) for name in layers)
    assert dusss_core.load(run / "student.safetensors", "cpu").about.layers == "unfitted"


def test_other_layers_than_those_that_stay_are_refused(public, run):
    study = make(public)
    site = load_local(run / "sites" / "alder" / "site.yaml", study)
    trainer = Segmenter(study.training(), "alder", site.splits["train"], site.splits["val"])
    layers = start_of(study, Phase.SEGMENT).layers
    name, value = next(iter(layers.items()))
    for wrong in ({**layers, "head.weight": value}, {**layers, name: value[:1]}, {name: value}):
        with pytest.raises(ValueError, match="not those that stay at the site"):
            trainer.load_start(wrong)
    trainer.load_start(layers)
    assert torch.equal(trainer.model.state_dict()[name], public[1][name])


def test_the_layers_are_part_of_what_a_secure_sum_is_about(public):
    messages = Messages(make(public), "0" * 32, Reporter())
    start = start_of(make(public), Phase.SEGMENT)
    tasks = set()
    for layers in ({}, start.layers, {name: value + 1 for name, value in start.layers.items()}):
        messages.hold_layers(layers)
        tasks.add(messages.task(start.shared, Phase.SEGMENT, "examples"))
    assert len(tasks) == 3


def test_in_a_secure_sum_every_site_starts_from_the_same_layers(public, quiet, tmp_path):
    hospitals = [*HOSPITALS, {**HOSPITALS[1], "name": "elm"}]
    for name, federation in (("plain", {}), ("summed", {"secure_aggregation": True})):
        simulate(make(public, hospitals, federation=federation), tmp_path / name, reporter=quiet)
    plain, summed = (
        read_model(tmp_path / name / "checkpoints" / "student.safetensors") for name in ("plain", "summed")
    )
    assert all(torch.allclose(value.float(), summed[name].float(), atol=1e-5) for name, value in plain.items())


def test_the_process_that_draws_the_first_weights_draws_the_layers(tmp_path, monkeypatch):
    study = make_study(
        local_norm=True,
        method={"preset": "supervised"},
        image={"size": 64, "channels": 3},
        student={"width": 4, "encoder": "tf_efficientnet_lite0", "weights": "imagenet"},
    )
    (tmp_path / "config.yaml").write_text(configfile.dump(study))
    here = start_of(study, Phase.SEGMENT)
    monkeypatch.setattr("dusss_core.training.start_of", None)  # not drawn here
    there = first_weights(tmp_path, study, Phase.SEGMENT, None)
    assert list(here.shared) == list(there.shared)
    for own, other in zip(here, there, strict=True):
        assert own and own.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in own.items())


def test_only_the_tower_that_was_trained_has_no_layers_to_bring():
    with pytest.raises((UserError, ValueError), match="stay at the"):
        make_study(local_norm=True, student={"width": 4, "encoder": "test_resnet", "weights": "vlm"})
