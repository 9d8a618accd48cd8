"""Promise 5: no message widens what the site's own file allows, whatever field of it is set to whatever value."""

from __future__ import annotations

import json
import types
import typing

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from pydantic import BaseModel

from client.answer import answer
from client.app import app
from dusss_core.config import TrainingConfig
from sites.config import LimitsConfig
from tests.client.conftest import declined, limit, make_content
from tests.client.door.watched import check_files, touched
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


def test_a_message_with_two_settings_records_is_read_by_name_alone(worked, site_file):
    limit(site_file, max_epochs_per_round=1)
    content = make_content(study=make_study(method={"preset": "mean_teacher"}, segment__epochs=3).training())
    content["other"] = ConfigRecord({"max_epochs_per_round": 9})
    assert "allows 1" in declined(answer("train", content, site_file))
    assert worked == []
