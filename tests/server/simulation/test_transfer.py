"""`student.weights: vlm`: the student's encoder starts from the image tower of step 1."""

from __future__ import annotations

import pytest
import torch

from dusss_core.build import build_student, build_vlm
from dusss_core.errors import UserError
from dusss_core.phases import Phase
from dusss_core.training import initial_shared
from server.runs.checkpoints import read_model
from server.simulation.local import load_local, train_locally
from server.simulation.simulate import simulate
from tests.server.conftest import HOSPITALS, finals, make_study
from tests.server.rounds.test_resume import Killed, Killer

TRANSFER = {
    "method": {
        "preset": "supervised",
        "pretraining": "mgca",
        "grounding_supervision": False,
        "grounding_consistency": False,
    },
    "student": {"width": 4, "encoder": "test_resnet", "weights": "vlm"},
}


def tower_of(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def test_the_encoder_starts_as_the_tower_is_and_all_else_as_ever():
    study = make_study(**TRANSFER)
    vlm = {key: value + 1 for key, value in build_vlm(study).state_dict().items()}
    started, plain = (initial_shared(study, Phase.SEGMENT, some) for some in (vlm, None))
    tower = tower_of(vlm, "image.encoder.")
    assert any("running" in key for key in tower)
    encoder = tower_of(started, "encoder.")
    assert all(torch.equal(encoder[key], value) for key, value in tower.items())
    # its patches are finer than the student's deepest stage
    rest = set(started) - {f"encoder.{key}" for key in tower}
    assert any(key.startswith("encoder.") for key in rest) and any(key.startswith("up.") for key in rest)
    assert all(torch.equal(started[key], plain[key]) for key in rest)
    assert plain.keys() == build_student(study.training()).state_dict().keys()


def test_step_1_is_trained_for_its_tower_alone_and_no_site_is_told_of_weights():
    study = make_study(**TRANSFER)
    assert not study.method.text_mask and list(study.phases()) == [Phase.PRETRAIN, Phase.SEGMENT]
    assert study.training().student.weights is None
    without = make_study(**{**TRANSFER, "student": {"width": 4, "encoder": "test_resnet"}})
    assert list(without.phases()) == [Phase.SEGMENT]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"student": {"encoder": "test_efficientnet", "weights": "vlm"}}, "they must be the same network"),
        ({"student": {"weights": "vlm"}}, "set encoder to the network of vlm.image_encoder"),
        ({"local_norm": True}, "student.weights: vlm with local_norm"),
    ],
)
def test_a_student_that_cannot_take_the_tower_is_refused_with_the_study(changes, reason):
    with pytest.raises(ValueError, match=reason):
        make_study(**{**TRANSFER, **changes})


def test_a_tower_of_another_network_is_refused():
    study = make_study(**TRANSFER)
    vlm = {key: value[..., :1] for key, value in build_vlm(study).state_dict().items() if value.ndim}
    with pytest.raises(UserError, match="the image tower is no part of the student's encoder"):
        initial_shared(study, Phase.SEGMENT, vlm)


def test_a_federation_of_one_is_plain_training_and_step_1_reaches_the_student(quiet, tmp_path):
    study = make_study(HOSPITALS[:1], **TRANSFER)
    simulate(study, tmp_path / "run", reporter=quiet)
    local = train_locally(study, load_local(tmp_path / "run" / "sites" / "alder" / "site.yaml", study))
    student = read_model(tmp_path / "run" / "checkpoints" / "student.safetensors")
    assert all(torch.equal(value, local.student[key]) for key, value in student.items())
    # the control: the same student from the same start, without step 1
    control = make_study(HOSPITALS[:1], **TRANSFER, pretrain__rounds=0)
    simulate(control, tmp_path / "control", reporter=quiet)
    found = tmp_path / "control" / "checkpoints"
    start, other = read_model(found / "vlm.safetensors"), read_model(found / "student.safetensors")
    assert start.keys() == build_vlm(control).state_dict().keys()
    assert all(torch.equal(value, start[key]) for key, value in build_vlm(control).state_dict().items())
    learnt = [key for key in tower_of(start, "image.encoder.") if key.endswith("weight")]
    assert learnt and all(not torch.equal(other[f"encoder.{key}"], student[f"encoder.{key}"]) for key in learnt)


def test_a_run_that_was_killed_between_the_phases_goes_on_from_the_same_tower(quiet, tmp_path):
    study = make_study(HOSPITALS[:1], **TRANSFER)
    simulate(study, tmp_path / "straight", reporter=quiet)
    with pytest.raises(Killed):
        simulate(study, tmp_path / "killed", reporter=Killer("on_phase_end", 1))
    simulate(study, tmp_path / "killed", resume=True, reporter=quiet)
    assert finals(tmp_path / "killed") == finals(tmp_path / "straight")
