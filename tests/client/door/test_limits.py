"""The limits of a site's own file, one by one: what is beyond one is declined by name before it is read or built."""

from __future__ import annotations

import os
from datetime import time

import pytest
import torch

import client.door.policy
from client.answer import answer
from client.state.store import SiteState
from dusss_core.config import TrainingConfig
from dusss_core.manifest import read_manifest
from sites.config import load_site
from tests.client.conftest import RUN_KEY, declined, limit, make_content
from tests.client.door.watched import check_files, touched
from tests.server.conftest import make_study


@pytest.mark.parametrize(
    ("limits", "settings", "reason"),
    [
        ({"studies": ["other"]}, {}, "limits.studies"),
        ({"max_picture_size": 32}, {"image": {"size": 64}}, "64 pixels .* allows 32"),
        ({"max_rounds": 10}, {"segment__rounds": 11}, "11 rounds .* allows 10"),
    ],
)
@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_study_beyond_the_limits_is_declined_from_the_first_question_on(
    worked, site_file, kind, limits, settings, reason
):
    limit(site_file, **limits)
    study = make_study(method={"preset": "mean_teacher"}, **settings).training()
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(declined(answer(kind, make_content(study=study), site_file)))
    assert worked == []


@pytest.mark.parametrize(
    ("phase", "changes"), [("segment", {"student__width": 2**40}), ("pretrain", {"vlm__dim": 2**16})]
)
def test_a_network_too_large_is_declined_before_it_is_built(worked, site_file, phase, changes):
    limit(site_file, max_parameters_m=2)
    study = make_study(**changes).training()
    with pytest.raises(AssertionError, match=r"limits\.max_parameters_m|RuntimeError"):
        raise AssertionError(declined(answer("train", make_content(study=study, phase=phase), site_file)))
    assert worked == []


def test_the_papers_student_is_counted_rightly():
    assert (
        client.door.policy._parameters("student", client.door.policy._networks(TrainingConfig(image={"channels": 3})))
        == 14_751_873
    )


def test_an_evaluation_builds_no_larger_student_either(fake, site_file):
    limit(site_file, max_parameters_m=1)
    study = make_study(student__width=512).training()
    assert "limits.max_parameters_m" in declined(answer("evaluate", make_content(study=study, what="test"), site_file))


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_text_encoder_is_not_read_for_masks_either(fake, site_file, bait, kind):
    vlm = {"body.weight": torch.ones(3, 4), "norm.running_mean": torch.zeros(4)}
    from dusss_core.files import digest_of_tensors

    study = make_study(vlm__text__encoder=str(bait)).training()
    content = make_content(study=study, vlm=vlm, vlm_digest=digest_of_tensors(vlm), what="test")
    with touched() as files:
        assert "limits.text_encoders" in declined(answer(kind, content, site_file))
    check_files(files, site_file, bait)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_text_encoder_is_not_read_for_a_student_that_is_given_sentences_either(fake, site_file, bait, kind):
    student = {"network": "early_fusion", "width": 4}
    study = make_study(
        method={"objective": "early_fusion"}, student=student, vlm__text__encoder=str(bait), pretrain__rounds=0
    ).training()
    with touched() as files:
        assert "limits.text_encoders" in declined(answer(kind, make_content(study=study, what="test"), site_file))
    check_files(files, site_file, bait)


def test_a_student_that_is_given_sentences_needs_no_room_for_a_vision_language_model(fake, site_file):
    limit(site_file, max_parameters_m=0.5)
    student = {"network": "early_fusion", "width": 4}
    study = make_study(method={"objective": "early_fusion"}, student=student, vlm__image_encoder="resnet18").training()
    assert declined(answer("evaluate", make_content(study=study, what="test"), site_file)) is None


def test_without_sentences_a_site_takes_no_part_in_pretraining(fake, site_file):
    limit(site_file, text=False)
    assert answer("query", make_content(), site_file).metric_records["metrics"]["n_text"] == 0
    reply = answer("train", make_content(phase="pretrain"), site_file)
    assert declined(reply) == "the site has no sentences" and reply.config_records["config"]["abstains"]


def test_masks_that_may_not_be_used_are_not_read(fake, site_file):
    limit(site_file, labels=False)
    masks = {
        os.path.realpath(record.mask) for record in read_manifest(site_file.parent / "manifest.csv") if record.mask
    }
    with touched() as files:
        assert declined(answer("train", make_content(), site_file)) is None
    assert masks and not masks & {path for path, _ in files}
    counts = answer("query", make_content(), site_file).metric_records["metrics"]
    assert (counts["n_labelled"], counts["n_val"], counts["n_test"]) == (0, 0, 0) and counts["n_unlabelled"] == 16


def test_pictures_of_a_split_that_may_not_be_used_are_not_read(fake, site_file):
    limit(site_file, splits=["train", "val"])
    records = read_manifest(site_file.parent / "manifest.csv")
    of = {name: {os.path.realpath(r.image) for r in records if r.split == name} for name in ("train", "test")}
    with touched() as files:
        assert declined(answer("train", make_content(), site_file)) is None
        answer("evaluate", make_content(what="test"), site_file)
    read = {path for path, _ in files}
    assert of["train"] <= read and not of["test"] & read


def test_training_that_outlasts_the_hours_is_broken_off_and_leaves_the_state_before(fake, site_file, monkeypatch):
    answer("train", make_content(round=1), site_file)
    folder = SiteState(site_file.parent / "state", "tiny", RUN_KEY).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    limit(site_file, hours="20:00-06:00")
    looks = []

    def within(hours, now):
        looks.append(now)
        return len(looks) <= 2  # the hours end during the first step

    monkeypatch.setattr(client.door.policy, "_within", within)
    study = make_study(method={"preset": "mean_teacher"}, segment__epochs=5).training()
    assert "20:00-06:00" in declined(answer("train", make_content(round=2, study=study), site_file))
    assert len(looks) == 3 and {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_hours_may_span_midnight_and_end_to_the_minute():
    within = client.door.policy._within
    assert within("20:00-06:00", time(20, 0)) and not within("20:00-06:00", time(6, 0))
    assert within("08:00-18:00", time(17, 59, 59)) and not within("08:00-18:00", time(18, 0))


def test_a_state_dir_that_is_full_to_its_limit_takes_no_more(worked, site_file):
    assert declined(answer("train", make_content(), site_file)) is None
    limit(site_file, max_disk_gb=1e-6)
    assert "limits.max_disk_gb" in declined(answer("train", make_content(round=2), site_file))
    assert len(worked) == 1


def test_the_limits_have_safe_defaults(site_file):
    limits = load_site(site_file).limits
    assert (
        limits.max_epochs_per_round == 5 and limits.max_picture_size and limits.max_parameters_m and limits.max_rounds
    )
    assert limits.text_encoders == ["minilm"]
