"""A site does what a message asks within its own limits (promise 5), and keeps its state to itself."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import subprocess
import sys

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

import client.door.policy
import client.state.store
from client.answer import answer
from client.state.store import SiteState, locked
from client.work.workbench import forget
from dusss_core import files
from dusss_core.files import digest_of_tensors
from dusss_core.manifest import read_manifest
from dusss_core.phases import Phase
from feddusss import wire
from tests.client.conftest import RUN_KEY, declined, limit, make_content, tensors_of
from tests.server.conftest import make_study


def test_a_query_is_answered_with_name_role_and_counts(fake, site_file):
    reply = answer("query", make_content(arrays=False), site_file)
    assert dict(reply.config_records["config"]) | {"release": "", "audit_head": ""} == {
        "site": "alder",
        "role": "train",
        "vlm": "",
        "release": "",
        "audit_head": "",
    }
    metrics = reply.metric_records["metrics"]
    assert metrics["n_labelled"] == 8 and metrics["n_unlabelled"] == 8 and metrics["n_val"] == 6


def test_a_round_leaves_private_state_and_goes_on_from_it(fake, site_file):
    first = answer("train", make_content(round=1), site_file)
    assert declined(first) is None and first.metric_records["metrics"]["state.age"] == 0
    second = answer("train", make_content(round=2), site_file)
    forget()
    assert torch.equal(
        tensors_of(second)["body.weight"], tensors_of(answer("train", make_content(round=2), site_file))["body.weight"]
    )


def test_a_missed_round_is_bridged_with_the_newest_state(fake, site_file):
    answer("train", make_content(round=1), site_file)
    reply = answer("train", make_content(round=4), site_file)
    assert reply.metric_records["metrics"]["state.age"] == 2


def test_only_the_last_two_rounds_are_kept(fake, site_file):
    for round in (1, 2, 3, 4):
        answer("train", make_content(round=round), site_file)
    folder = SiteState(site_file.parent / "state", "tiny", RUN_KEY).folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "segment-000003.safetensors",
        "segment-000004.safetensors",
        "segment-spare",  # room for the next
    ]


def test_a_text_encoder_that_the_site_does_not_allow_is_declined(fake, site_file):
    study = make_study(vlm__text__encoder="/somewhere/on/this/machine").training()
    reason = declined(answer("train", make_content(study=study, phase="pretrain"), site_file))
    assert "limits.text_encoders" in reason


@pytest.mark.parametrize(
    ("limits", "training", "reason"),
    [
        ({"max_epochs_per_round": 1}, {"segment__epochs": 2}, "2 epochs per round were asked for.* allows 1"),
        ({"max_steps_per_round": 1}, {}, "more steps per round than this site allows"),
        ({"phases": ["pretrain"]}, {}, "does not train in phase 'segment'"),
        ({"max_memory_gb": 0.001}, {}, "0.001 GB that this site allows"),
    ],
)
def test_what_goes_beyond_a_limit_is_declined_and_nothing_is_trained(fake, site_file, limits, training, reason):
    limit(site_file, **limits)
    study = make_study(method={"preset": "mean_teacher"}, **training).training()
    text = declined(answer("train", make_content(study=study), site_file))
    assert text is not None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(text)
    assert not list((site_file.parent / "state").rglob("segment-*"))


@pytest.mark.parametrize(
    ("limits", "steps"),
    [({}, 100), ({"max_epochs_per_round": 1}, 20), ({"max_epochs_per_round": 1, "max_steps_per_round": 12}, 10)],
    ids=["default", "epochs", "steps"],
)
def test_a_plain_student_is_held_to_the_sites_limits(fake, site_file, monkeypatch, limits, steps):
    """16 pictures, 8 a step: a pass has two steps, and so has a round."""
    seen, train = [], fake._Trainer.train_round
    monkeypatch.setattr(
        fake._Trainer, "train_round", lambda own, round: seen.append(own.spare_steps) or train(own, round)
    )
    limit(site_file, **limits)
    changes = {"segment__batch": 8, "segment__rounds": 1000, "segment__plain_share": 1.0}
    study = make_study(method={"preset": "mean_teacher"}, **changes).training()
    assert declined(answer("train", make_content(study=study), site_file)) is None
    assert seen == [steps]


def test_training_waits_for_the_hours_that_a_site_allows(fake, site_file, monkeypatch):
    from datetime import time

    within = client.door.policy._within
    assert within("20:00-06:00", time(23, 0)) and within("20:00-06:00", time(5, 0))
    assert not within("20:00-06:00", time(12, 0)) and within("08:00-18:00", time(12, 0))
    limit(site_file, hours="20:00-06:00")
    monkeypatch.setattr(client.door.policy, "_within", lambda hours, now: False)
    assert "20:00-06:00" in declined(answer("train", make_content(), site_file))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"run_key": "../../escape"}, "'run_key'"),
        ({"phase": "../x"}, "'phase'"),
        ({"round": 0}, "'round'"),
        ({"vlm_digest": "../x"}, "'vlm_digest'"),
        ({"training": "{}x"}, "not valid"),
        ({"training": json.dumps({"study": "../../etc"})}, "not valid"),
        ({"training": json.dumps({"sudent": {}})}, "sudent"),
        ({"training": json.dumps({"vlm": {"weights": "/etc/passwd"}})}, "names a file"),
    ],
)
def test_a_message_that_is_not_allowed_is_declined(fake, site_file, config, reason):
    assert reason in declined(answer("train", make_content(**config), site_file))
    assert not (site_file.parent / "state" / "studies").exists()


def test_a_message_without_settings_is_declined(fake, site_file):
    assert "no settings" in declined(answer("train", RecordDict(), site_file))
    assert declined(answer("train", RecordDict({"config": ConfigRecord({})}), site_file))


def test_a_model_that_does_not_fit_is_declined(fake, site_file):
    content = make_content()
    tensors = wire.unpack(content.array_records["arrays"])
    content["arrays"] = wire.pack({name: tensor for name, tensor in tensors.items() if name != "body.bias"})
    assert "does not fit" in declined(answer("train", content, site_file))


def test_an_error_leaves_the_site_as_its_kind_alone(fake, site_file, monkeypatch):
    def broken(self, round):
        raise RuntimeError("patient_4711.png is damaged")

    monkeypatch.setattr(fake.Segmenter, "train_round", broken)
    reply = answer("train", make_content(), site_file)
    assert declined(reply) == "RuntimeError; the site's own log says more"
    assert "patient_4711.png" in (site_file.parent / "state" / "log.txt").read_text()


def test_a_failed_round_leaves_the_state_before_and_the_next_one_is_not_touched_by_it(fake, site_file, monkeypatch):
    answer("train", make_content(round=1), site_file)
    clean = tensors_of(answer("train", make_content(round=2), site_file))
    train = fake.Segmenter.train_round

    def interrupted(self, round):
        train(self, round)
        raise RuntimeError

    monkeypatch.setattr(fake.Segmenter, "train_round", interrupted)
    assert declined(answer("train", make_content(round=2), site_file))
    monkeypatch.setattr(fake.Segmenter, "train_round", train)
    again = tensors_of(answer("train", make_content(round=2), site_file))
    assert all(torch.equal(clean[name], again[name]) for name in clean)


def test_a_full_disk_leaves_the_state_before(fake, site_file, monkeypatch):
    answer("train", make_content(round=1), site_file)
    folder = SiteState(site_file.parent / "state", "tiny", RUN_KEY).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(file, piece):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_write_all", full)
    assert declined(answer("train", make_content(round=2), site_file)).startswith("UserError")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "free disk space" in (site_file.parent / "state" / "log.txt").read_text()


def test_a_vlm_is_taken_only_if_it_is_what_its_digest_says(fake, site_file):
    content = make_content(vlm={"w": torch.ones(2)}, vlm_digest="0" * 64)
    assert "digest" in declined(answer("train", content, site_file))


def test_a_site_that_lacks_the_vlm_says_so(fake, site_file):
    study = make_study().training()
    content = make_content(study=study, vlm_digest="0" * 64)
    assert "has not been given" in declined(answer("train", content, site_file))


@pytest.mark.parametrize("kept", [True, False], ids=["kept workbench", "from disk"])
def test_text_guided_masks_are_those_of_the_vlm_that_the_message_names(fake, site_file, kept):
    study = make_study().training()
    older = fake.initial_shared(study, Phase.PRETRAIN)
    newer = {name: tensor + 1 for name, tensor in older.items()}

    def student(vlm):
        content = make_content(study=study, vlm=vlm, vlm_digest=digest_of_tensors(vlm))
        return digest_of_tensors(tensors_of(answer("train", content, site_file)))

    before = student(older)
    if not kept:
        forget()
    after = student(newer)
    shutil.rmtree(site_file.parent / "state")
    forget()
    assert after == student(newer) != before


def test_figures_of_pseudo_labels_are_of_pictures_that_taught_nothing(fake, site_file, monkeypatch):
    study = make_study().training()
    vlm = fake.initial_shared(study, Phase.PRETRAIN)
    known = {"study": study, "vlm": vlm, "vlm_digest": digest_of_tensors(vlm)}
    answer("train", make_content(**known), site_file)
    scored, without_distances = [], []

    def spied(score):
        def look(config, model, split, *rest, **how):
            scored.append(split)
            if how == {"distances": False}:
                without_distances.append(split)
            return score(config, model, split, *rest, **how)

        return look

    for name in ("evaluate_student", "evaluate_logits"):
        monkeypatch.setattr(f"dusss_core.training.{name}", spied(getattr(fake, name)))
    figures = answer("evaluate", make_content(what="test", **known), site_file).metric_records["metrics"]
    assert {"pseudo.teacher_dice", "pseudo.text_dice"} <= set(figures)
    train = [record for record in read_manifest(site_file.parent / "manifest.csv") if record.split == "train"]
    hidden = {record.id for record in train if record.mask and not record.labelled and record.text}
    of_training_pictures = [split for split in scored if {record.id for record in train}.intersection(split.ids)]
    assert [set(split.ids) for split in of_training_pictures] == [hidden, hidden]
    # nobody reports distances on them, and they take most of the time
    assert [set(split.ids) for split in without_distances] == [hidden]
    assert 0 < figures["pseudo.n"] == len(hidden) < len(train) / 2


def test_two_processes_never_work_for_one_site(fake, site_file, monkeypatch):
    monkeypatch.setattr(client.state.store.locked.__wrapped__, "__defaults__", (0.1,))
    with locked(site_file.parent / "state"):
        assert declined(answer("train", make_content(), site_file)) == "another process is working for this site"
    assert declined(answer("train", make_content(), site_file)) is None


def test_the_lock_ends_with_the_process_that_held_it(tmp_path):
    hold = (
        "import os,sys; from pathlib import Path; from client.state.store import locked\n"
        f"with locked(Path({str(tmp_path)!r})): os._exit(3)"
    )
    assert subprocess.run([sys.executable, "-c", hold], check=False).returncode == 3
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_old_runs_of_a_study_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(client.state.store, "KEPT_RUNS", 2)
    keys = [f"{i:032x}" for i in range(4)]
    for key in keys:
        SiteState(tmp_path, "study", key).save("segment", 1, {"w": torch.ones(1)})
    assert sorted(path.name for path in (tmp_path / "studies" / "study").iterdir()) == keys[-2:]


def test_the_private_folder_is_readable_by_its_owner_alone(fake, site_file):
    answer("train", make_content(), site_file)
    assert (site_file.parent / "state").stat().st_mode & 0o077 == 0


def test_weights_that_are_not_finite_stay_here_and_so_does_the_state_that_made_them(fake, site_file, monkeypatch):
    assert declined(answer("train", make_content(), site_file)) is None
    states = sorted((site_file.parent / "state").rglob("segment-*.safetensors"))
    shared = fake.Segmenter.shared
    monkeypatch.setattr(
        fake.Segmenter, "shared", lambda self, **_: {n: t * float("nan") for n, t in shared(self).items()}
    )
    reply = answer("train", make_content(round=2), site_file)
    assert "not finite" in declined(reply) and reply.config_records["config"]["diverged"] is True
    assert not reply.array_records
    assert sorted((site_file.parent / "state").rglob("segment-*.safetensors")) == states and states
