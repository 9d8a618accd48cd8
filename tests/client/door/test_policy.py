"""Promise 5: no message widens what the site's own file allows, whatever field of it is set to whatever value."""

from __future__ import annotations

import json
import os
import sys
import types
import typing
from contextlib import contextmanager
from datetime import time

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from pydantic import BaseModel

import client.door.policy
from client.answer import answer
from client.app import app
from client.state.store import SiteState
from dusss_core.config import TrainingConfig
from dusss_core.manifest import read_manifest
from sites.config import LimitsConfig, load_site
from tests.client.conftest import RUN_KEY, declined, limit, make_content
from tests.server.conftest import make_study

LIMITS = {
    "studies": ["tiny"],
    "max_epochs_per_round": 1,
    "max_steps_per_round": 2,
    "max_rounds": 5,
    "max_picture_size": 32,
    "max_parameters_m": 1,
    "phases": ["pretrain", "segment"],
    "splits": ["train", "val", "test"],
}


# Which files are touched.

_touched: list[tuple[str, bool]] | None = None
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _watch(event, arguments):
    if _touched is None:
        return
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _touched.append((os.path.realpath(os.fsdecode(arguments[0])), bool(arguments[2] & _WRITES)))
    elif event in ("socket.connect", "subprocess.Popen", "os.system", "os.exec"):
        _touched.append((f"{event} {arguments}", True))


sys.addaudithook(_watch)


@contextmanager
def touched():
    """Files that are opened in the block, each with whether it is to be written; and connections and programs."""
    global _touched
    _touched = found = []
    try:
        yield found
    finally:
        _touched = None


# Every field of the settings.


def leaves(model: type[BaseModel], path: tuple[str, ...] = ()):
    """The dotted fields of a settings class, with their types."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, (*path, name))
        else:
            yield (*path, name), kind


def hostile_values(kind, bait):
    """Values of a field's type that a site should fear."""
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    if typing.get_origin(kind) is typing.Annotated:
        return hostile_values(typing.get_args(kind)[0], bait)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        alternatives = [other for other in typing.get_args(kind) if other is not types.NoneType]
        return [value for other in alternatives for value in hostile_values(other, bait)]
    if typing.get_origin(kind) is list:
        return [[value] for value in hostile_values(typing.get_args(kind)[0], bait)]
    kinds = set(typing.get_args(kind)) | {kind}
    values = []
    if bool in kinds:
        values += [True, False]
    if int in kinds:
        values += [-1, 64, 10**9]
    if float in kinds:
        values += [-1.0, 0.75, 1e300]
    if str in kinds:
        values += [str(bait), "../../bait", "hf-hub:someone/model", "local-dir:" + str(bait), "x" * 10_000, "\0"]
    assert values, kind
    return values


FIELDS = list(leaves(TrainingConfig))


def settings_with(path, value, phase):
    settings = make_study(method={"preset": "mean_teacher"} if phase == "segment" else {}).training().model_dump()
    place = settings
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return json.dumps(settings)


@pytest.fixture
def bait(tmp_path):
    """A folder that a message might name, with what a model's folder holds."""
    folder = tmp_path / "bait"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.txt"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def worked(fake, monkeypatch):
    """Epochs, steps, round, picture size and phase of every round that is really trained."""
    rounds = []

    def watched(self, round, train=fake._Trainer.train_round):
        settings = getattr(self.config, self.phase)
        rounds.append((settings.epochs, self.steps_per_round, round, self.config.image.size, self.config.study))
        return train(self, round)

    monkeypatch.setattr(fake._Trainer, "train_round", watched)
    return rounds


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["pretrain", "segment"])
def test_no_field_of_the_settings_widens_a_limit(worked, site_file, bait, phase):
    limit(site_file, **LIMITS)
    before = site_file.read_bytes()
    answered = 0
    for path, kind in FIELDS:
        for value in hostile_values(kind, bait):
            content = make_content(training=settings_with(path, value, phase), phase=phase)
            with touched() as files:
                reply = answer("train", content, site_file)
            assert declined(reply) is not None or "arrays" in reply
            answered += declined(reply) is None
            for epochs, steps, round, size, study in worked:
                assert epochs <= 1 and steps <= 2 and round <= 5 and size <= 32 and study == "tiny", (path, value)
            check_files(files, site_file, bait)
            assert site_file.read_bytes() == before, (path, value)
    assert answered == len(worked) > 50  # most values widen nothing, and are worked on


def check_files(files, site_file, bait):
    state = os.path.realpath(site_file.parent / "state")
    for path, written in files:
        assert not path.startswith(str(bait)), path
        elsewhere = written and not path.startswith((state, "/dev/null"))
        assert not elsewhere or "__pycache__" in path, path


def test_the_watch_sees_what_is_written_elsewhere_and_what_is_read_of_a_bait(site_file, bait, tmp_path):
    """The test above can fail."""
    with touched() as files:
        (bait / "config.json").read_text()
    with pytest.raises(AssertionError):
        check_files(files, site_file, bait)
    with touched() as files:
        (tmp_path / "else").write_text("")
    with pytest.raises(AssertionError):
        check_files(files, site_file, bait)


@pytest.mark.slow
def test_all_texts_of_the_settings_are_tried_with_the_true_method(site_file, bait):
    texts = [path for path, kind in FIELDS if str in {kind, *typing.get_args(kind)}]
    assert len(texts) == 6
    for path in texts:
        for phase in ("pretrain", "segment"):
            for kind in ("train", "evaluate"):
                for value in hostile_values(str, bait):
                    training = settings_with(path, value, phase)
                    content = make_content(training=training, phase=phase, vlm_digest="0" * 64, arrays=False)
                    with touched() as files:
                        reply = answer(kind, content, site_file)
                    assert declined(reply) or kind == "evaluate", (path, value)
                    check_files(files, site_file, bait)


@pytest.mark.parametrize("part", ["vlm", "student"])
def test_a_message_that_names_a_file_of_this_machine_is_declined_before_the_file_is_looked_at(
    fake, site_file, bait, part
):
    weights = bait / "weights.safetensors"
    weights.write_bytes(b"whatever lies there")
    training = settings_with((part, "weights"), str(weights), "segment")
    with touched() as files:
        assert f"{part}.weights" in declined(answer("train", make_content(training=training), site_file))
    check_files(files, site_file, bait)


def test_limits_in_a_message_are_not_read(worked, site_file):
    limit(site_file, max_epochs_per_round=1)
    study = make_study(method={"preset": "mean_teacher"}, segment__epochs=3).training()
    for name in LimitsConfig.model_fields:
        for key in (name, f"limits.{name}", "limits"):
            content = make_content(study=study, **{key: 10**6})
            assert "allows 1" in declined(answer("train", content, site_file))
        settings = json.loads(study.model_dump_json()) | {"limits": {name: 10**6}}
        assert "limits" in declined(answer("train", make_content(training=json.dumps(settings)), site_file))
    assert worked == []


def test_paths_and_budgets_in_a_message_are_not_read(worked, private, site_file, bait):
    private.reason = "not this study"
    private.site(site_file)
    for key in ("site", "state_dir", "data", "manifest", "site-config", "privacy", "epsilon", "delta", "out"):
        with touched() as files:
            assert "differential privacy" in declined(answer("train", make_content(**{key: str(bait)}), site_file))
        check_files(files, site_file, bait)
    assert worked == []


def test_a_private_round_makes_no_more_passes_than_the_site_allows(worked, private, site_file):
    private.site(site_file)
    limit(site_file, max_epochs_per_round=1)

    def asked(steps, rate, phase="segment"):
        privacy = {"steps_per_round": steps, "sample_rate": rate, "noise_multiplier": 1e6}
        study = make_study(method={"preset": "mean_teacher"}, privacy=privacy).training()
        return declined(answer("train", make_content(study=study, phase=phase), site_file))

    def refused(*arguments):
        reason = asked(*arguments)
        return "limits.max_private_epochs_per_round" in reason and "lower privacy.steps_per_round" in reason

    assert refused(10**6, 1.0) and refused(51, 1.0, "pretrain")
    assert refused(10**6, 1e-12)  # steps that draw no record take time too
    limit(site_file, max_private_epochs_per_round=2)
    assert refused(3, 1.0)
    assert worked == [] and not list(site_file.parent.rglob("ledger.json"))
    assert asked(4, 0.5) is None
    limit(site_file, max_private_epochs_per_round=LimitsConfig().max_private_epochs_per_round)
    assert asked(50, 1.0) is None and len(worked) == 2


def test_the_views_of_a_record_count_as_passes_of_a_private_round(worked, private, site_file):
    private.site(site_file)
    limit(site_file, max_private_epochs_per_round=8)

    def asked(phase="segment", **changed):
        privacy = {"steps_per_round": 8, "sample_rate": 0.5, "noise_multiplier": 1e6, "views": 64, **changed}
        study = make_study(method={"preset": "mean_teacher"}, privacy=privacy).training()
        return declined(answer("train", make_content(study=study, phase=phase), site_file))

    for phase in ("segment", "pretrain"):
        assert "64 views" in str(asked(phase)) and "privacy.views" in asked(phase)
    assert worked == []
    assert asked(views=2) is None and len(worked) == 1
    # groups have no views
    assert "limits.max_private_epochs_per_round" not in str(asked("pretrain", pretrain="groups"))


def test_every_other_field_of_a_message_is_held_to_its_form(worked, site_file):
    limit(site_file, **LIMITS)
    for field, values in {
        "round": [10**9, 6, True, 1.5, [1], "1"],
        "phase": ["segment\n", "SEGMENT", "", b"segment"],
        "what": ["everything", "train\n"],
        "wire": ["float16", "bfloat16\n", "int4", "INT8"],
        "topk_share": [0.0, -0.1, 1.5, float("nan"), 1, "0.1"],
        "base": ["0" * 63, "../x", b"0" * 64],
        "model_digest": ["0" * 63, "../x"],
        "run_key": ["a" * 15, b"a", "../" * 10, "A" * 32],
        "vlm_digest": ["0" * 63, "../x"],
        "vlm_round": [-1, "0", 10**9],
        "training": [b"{}", "x" * 200_000, "[]", "", "{"],
    }.items():
        for value in values:
            assert declined(answer("train", make_content(**{field: value}), site_file)), (field, value)
    assert worked == []


# The run's own settings, which the coordinator may set to anything.


class Untouchable(dict):
    """A mapping that must not be looked at."""

    def _touched(self, *_, **__):
        raise AssertionError("run_config was read")

    __getitem__ = __contains__ = __iter__ = __len__ = get = items = keys = values = _touched


def test_a_hospital_never_looks_at_the_runs_settings(fake, site_file, monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    context = Context(1, 1, {"site-config": str(site_file)}, RecordDict(), {})
    context.run_config = Untouchable()
    message = Message(make_content(), 1, "train")
    message.metadata.__dict__["_message_id"] = "1"  # as a message that came from a SuperLink has
    assert "arrays" in app(message, context).content


# The site's limits, one by one.


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


def test_a_message_with_two_settings_records_is_read_by_name_alone(worked, site_file):
    limit(site_file, max_epochs_per_round=1)
    content = make_content(study=make_study(method={"preset": "mean_teacher"}, segment__epochs=3).training())
    content["other"] = ConfigRecord({"max_epochs_per_round": 9})
    assert "allows 1" in declined(answer("train", content, site_file))
    assert worked == []
