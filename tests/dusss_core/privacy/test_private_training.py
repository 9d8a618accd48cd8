"""Private trainers are the phase's trainers, but for what they tell: noised weights and public figures alone."""

from __future__ import annotations

import inspect
from itertools import pairwise

import numpy as np
import pytest
import torch

from dusss_core.build import build_vlm
from dusss_core.errors import UserError
from dusss_core.files import digest_of_tensors, write_tensors
from dusss_core.phases import Phase
from dusss_core.privacy.pretrain import PrivatePretrainer
from dusss_core.privacy.public import CASES, public_captions, public_pictures
from dusss_core.privacy.segment import PrivateSegmenter
from dusss_core.privacy.step import trained
from dusss_core.training import Pretrainer, Segmenter, initial_shared
from tests.dusss_core.conftest import FakeBank, make_split
from tests.dusss_core.privacy.conftest import Fixed, pretrainer, private_config, released_sum, segmenter


@pytest.mark.parametrize(("private", "plain"), [(PrivateSegmenter, Segmenter), (PrivatePretrainer, Pretrainer)])
def test_a_private_trainer_is_built_like_the_plain_one(private, plain):
    def arguments(kind):
        return set(inspect.signature(kind.__init__).parameters) - {"args", "kwargs"}

    if private is PrivateSegmenter:  # hands everything on but its own
        assert arguments(private) - arguments(plain) == {"records"}
    else:
        assert arguments(private) - arguments(plain) == {"records", "public_text"}
        # what a private trainer holds is handed on to no other site
        assert arguments(plain) - arguments(private) == {"heir_of"}


def make(phase, config, split):
    return segmenter(config, split, records=1000) if phase == Phase.SEGMENT else pretrainer(config, split)


@pytest.mark.parametrize("name", ["mean_teacher_mse", "cct", "mcnet"])
def test_whether_anybody_has_a_mask_changes_no_other_record_s_part(name):
    """Nor how far a step goes, nor what is handed on: `pace` and `alone` are for sites that tell their counts."""
    config, told = private_config(method={"objective": name}), []
    split = make_split(n=6, labelled=1)
    for part in (split, split.select(np.arange(1, 6))):
        trainer = segmenter(config, part)
        assert trainer.pace(0.0) == trainer.pace(0.5) == 1 and trainer.handed_on == ()
        trainer.randomness = Fixed()
        gradients = [
            torch.autograd.grad(trainer.loss_of(np.array([i]), 0.9), trained(trainer.student), allow_unused=True)
            for i in range(len(part) - 5, len(part))
        ]
        trainer.train_round(2)
        rates = [group["lr"] for group in trainer.optimizer.param_groups]
        told.append((rates, gradients, [value.grad is not None for value in trainer.student.parameters()]))
    (rates, gradients, moved), (other_rates, other_gradients, also_moved) = told
    assert rates == other_rates and all(moved) and all(also_moved)
    for own, other in zip(gradients, other_gradients, strict=True):
        for before, after in zip(own, other, strict=True):
            assert (before is None) == (after is None) and (before is None or torch.equal(before, after))


ENCODER = {"encoder": "test_resnet", "width": 4, "norm": "group"}
"""A student with batch norm on its way down: frozen statistics, whatever is trained."""


@pytest.mark.parametrize(
    ("phase", "student"),
    [(Phase.PRETRAIN, {}), (Phase.SEGMENT, {}), (Phase.SEGMENT, {"student": ENCODER})],
)
def test_nothing_but_weights_and_the_number_of_steps_comes_out(phase, student):
    split, told = make_split(), []
    trainer = make(phase, private_config(privacy={"steps_per_round": 2}, **student), split)
    trainer.progress = lambda *figures: told.append(figures)
    before = initial_shared(trainer.config, phase)
    assert trainer.train_round(1) == {"n_steps": 2}
    assert trainer.validate() == {}
    assert [figures[:2] for figures in told] == [(1, 2), (2, 2)]
    assert all(np.isnan(loss) for _, _, loss in told)
    after = trainer.shared()
    assert set(after) == set(before)
    for name in after:  # statistics come back as they came, everything that is trained with noise
        assert torch.equal(after[name], before[name]) == ("running_" in name or "num_batches" in name), name


def test_rounds_do_not_repeat():
    config, split = private_config(), make_split()
    digests = set()
    for _ in range(2):
        trainer = segmenter(config, split)
        trainer.train_round(1)
        digests.add(digest_of_tensors(trainer.shared()))
    assert len(digests) == 2


def test_a_state_without_the_mark_of_private_training_is_refused():
    config, split = private_config(), make_split()
    plain = Segmenter(config, "a", split, split)
    trainer = segmenter(config, split)
    with pytest.raises(UserError, match="without differential privacy\n  -> start the study anew"):
        trainer.load_private(plain.private())
    trainer.train_round(1)
    resumed = segmenter(config, split)
    resumed.load_private(trainer.private())
    assert digest_of_tensors(resumed.private()) == digest_of_tensors(trainer.private())
    assert resumed.step == 1


def test_a_study_that_can_not_be_private_is_refused_with_a_remedy():
    split = make_split()
    config = private_config(student={"width": 4, "norm": "batch"})
    with pytest.raises(UserError, match=r"phase segment: student.norm: batch .* set student.norm: group"):
        PrivateSegmenter(config, "a", split, split, records=10)


def test_the_teacher_follows_noised_students_alone():
    config = private_config(privacy={"steps_per_round": 1}, segment={"ema": 0.0})
    trainer = segmenter(config, make_split())
    trainer.train_round(1)
    student, teacher = trainer.student.state_dict(), trainer.objective.teacher.model.state_dict()
    assert all(torch.equal(student[name], teacher[name]) for name in student)


def test_with_little_noise_the_private_student_learns():
    config = private_config(
        privacy={"steps_per_round": 20, "sample_rate": 1.0, "noise_multiplier": 1e-3},
        segment={"rounds": 2, "optimizer": {"lr": 1e-2}, "flip": False},
        method={"preset": "supervised"},
    )
    trainer = segmenter(config, make_split(n=8, labelled=8), records=8)
    assert Segmenter.validate(trainer)["dice"] < 0.3
    trainer.train_round(1)
    assert Segmenter.validate(trainer)["dice"] > 0.7


@pytest.mark.parametrize("switch", ["sss", "dcl", "ltg", "grounding_supervision"])
def test_every_switch_of_pretraining_changes_the_private_sum(switch):
    split = make_split(n=4)
    on = released_sum(pretrainer(private_config(), split))
    off = released_sum(pretrainer(private_config(method={switch: False}), split))
    assert not torch.allclose(on, off)


def test_a_record_s_own_sentence_is_no_negative():
    split = make_split(n=2)
    bank = public_captions()
    config = private_config(method={"dcl": False, "ltg": False})
    same = type(split)(**{**vars(split), "sentences": (bank[0], bank[1])})
    assert not torch.allclose(released_sum(pretrainer(config, split)), released_sum(pretrainer(config, same)))


def test_public_weights_are_frozen_and_travel_as_they_came(tmp_path):
    config = private_config()
    weights = build_vlm(config).image.encoder.state_dict()
    write_tensors(tmp_path / "weights.safetensors", weights, {})
    vlm = {**config.vlm.model_dump(), "weights": str(tmp_path / "weights.safetensors")}
    # a site is never told where the coordinator had them from: the setting says that they stay
    config = private_config(vlm=vlm, privacy={"freeze_encoder": True})
    site_config = private_config(privacy={"freeze_encoder": True})
    trainer = pretrainer(site_config, make_split())
    trainer.load_shared(initial_shared(config, Phase.PRETRAIN))
    before = initial_shared(config, Phase.PRETRAIN)
    trainer.train_round(1)
    after = trainer.shared()
    assert set(after) == set(before)
    frozen = {name for name in after if torch.equal(after[name], before[name])}
    assert frozen == {f"image.encoder.{name}" for name in weights}


def test_a_group_is_whoever_drew_its_number():
    config = private_config(privacy={"pretrain": "groups", "groups": 4})
    trainer = PrivatePretrainer(config, "a", make_split(), make_split(), FakeBank(), records=1000)
    trainer.randomness = Fixed(np.array([3, 0, 3, 1]))
    units = trainer.units(np.array([2, 4, 6, 8]))
    assert [list(unit) for unit in units] == [[4], [8], [2, 6]]
    assert trainer.expected == 4


def test_the_public_bank_is_the_same_everywhere_and_no_two_cases_are_alike():
    image = private_config().image
    pictures = public_pictures(image)
    assert pictures.shape == (CASES, 1, 32, 32)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    torch.manual_seed(5)
    assert torch.equal(pictures, public_pictures(image))
    assert len(set(public_captions())) == CASES
    assert min(float((a - b).abs().mean()) for a, b in pairwise(pictures)) > 0.01


@pytest.mark.parametrize(
    ("part", "student", "kept"),
    [
        ("decoder", {}, ("stem.", "down.")),
        ("norms", {}, ("stem.0.", "up.0.raise")),
        ("head", {}, ("stem.", "down.", "up.")),
        ("decoder", ENCODER, ("encoder.",)),
        ("head", ENCODER, ("encoder.", "up.")),
    ],
)
def test_what_is_not_trained_travels_as_it_came_and_costs_no_noise(part, student, kept):
    train = make_split()
    network = {"student": student} if student else {}
    whole = segmenter(private_config(**network), train)
    trainer = segmenter(private_config(privacy={"student": part}, **network), train)
    before = trainer.shared()
    assert before.keys() == whole.shared().keys()
    trainer.train_round(1)
    changed = {name for name, value in trainer.shared().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("head.") for name in changed)
    assert not any(name.startswith(kept) for name in changed)
    assert all(parameter.grad is None for parameter in trainer.student.parameters() if not parameter.requires_grad)


@pytest.mark.parametrize(
    ("part", "moved"), [("decoder", {"up", "head"}), ("norms", {"up", "head"}), ("head", {"head"})]
)
def test_the_same_part_of_every_decoder_is_trained(part, moved):
    trainer = segmenter(private_config(method={"objective": "mcnet"}, privacy={"student": part}), make_split())
    before = trainer.shared()
    trainer.train_round(2)
    names = [name.split(".") for name, value in trainer.shared().items() if not torch.equal(value, before[name])]
    assert {name[2] for name in names if name[0] == "others" and name[1] == "0"} == moved
    assert {name[2] for name in names if name[0] == "others" and name[1] == "1"} == moved
    assert {name[0] for name in names} - {"others", "stem", "down"} == moved


def test_a_student_starts_from_public_weights_and_refuses_those_of_another(tmp_path):
    public = initial_shared(private_config(seed=9), Phase.SEGMENT)
    path = tmp_path / "public.safetensors"
    write_tensors(path, public)
    config = private_config(student={"width": 4, "norm": "group", "weights": str(path)})
    assert digest_of_tensors(initial_shared(config, Phase.SEGMENT)) == digest_of_tensors(public)
    wider = private_config(student={"width": 8, "norm": "group", "weights": str(path)})
    with pytest.raises(UserError, match="not the tensors of this student"):
        initial_shared(wider, Phase.SEGMENT)
