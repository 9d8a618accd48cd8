"""`federation.wire: int8` and `topk`: what the sites hold, what the coordinator holds, and what a loss changes."""

from __future__ import annotations

import shutil
from collections import defaultdict

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from dusss_core import training
from dusss_core.files import digest_of_tensors, read_tensors
from dusss_core.phases import Phase
from feddusss import compression, wire
from feddusss.compression import Codec, compress
from server.rounds import roster
from server.rounds.reference import Reference
from server.rounds.replies import DIVERGED, LACKS, read_reply
from server.runs.checkpoints import read_model
from server.simulation.simulate import simulate
from server.study.config import load_study
from tests.server.conftest import HOSPITALS, finals, make_study
from tests.server.rounds.test_replies import message
from tests.server.rounds.test_resume import Killed, Killer, _rounds
from tests.server.unreliable import coordinate

THREE = [{**HOSPITALS[0], "name": name} for name in ("alder", "birch", "cedar")]
INT8, TOPK = {"wire": "int8"}, {"wire": "topk", "topk_share": 0.3}
BOTH = pytest.mark.parametrize("federation", [INT8, TOPK], ids=lambda federation: federation["wire"])


@pytest.fixture
def small(fake, monkeypatch):
    """The stand-in's twelve numbers are enough to be compressed, and nobody waits long."""
    monkeypatch.setattr(compression, "SMALL", 4)
    monkeypatch.setattr(compression, "BLOCK", 8)
    monkeypatch.setattr("server.rounds.exchange.POLL_S", 0.01)
    for name in ("POLL_S", "_LOOK_S", "_JOIN_S", "_AGAIN_S"):
        monkeypatch.setattr(roster, name, 0.01)
    return fake


@pytest.fixture
def begun(small, monkeypatch):
    """(phase, round) -> digests of the models that training began with, by site."""
    from tests.server import fake_training

    digests, loaded = defaultdict(dict), {}
    load, train = fake_training._Trainer.load_shared, fake_training._Trainer.train_round

    def loads(self, tensors):
        loaded[self.site] = digest_of_tensors(tensors)
        load(self, tensors)

    def trains(self, round):
        digests[str(self.phase), round][self.site] = loaded[self.site]
        return train(self, round)

    monkeypatch.setattr(fake_training._Trainer, "load_shared", loads)
    monkeypatch.setattr(fake_training._Trainer, "train_round", trains)
    return digests


def study(federation, rounds=4, **changes):
    federation = {"round_timeout_s": 0.05, "start_timeout_s": 0.2, **federation}
    changes = {"method": {"preset": "mean_teacher"}, **changes}
    return make_study(THREE, segment__rounds=rounds, federation=federation, **changes)


class Spy:
    """A meddler that remembers every train message's form: (site, round) -> "whole" or "change", in order."""

    def __init__(self, monkeypatch, then=None):
        from server.rounds.messages import Messages

        self.forms = defaultdict(list)
        content, spy = Messages._content, self

        def watched(self, records, **settings):
            if "arrays" in records and settings.get("what", "train") == "train":
                spy.last = "change" if settings.get("base") else "whole"
                spy.forms[settings["round"]].append(spy.last)
            return content(self, records, **settings)

        monkeypatch.setattr(Messages, "_content", watched)


# The sites hold one model.


@BOTH
def test_a_phase_begins_whole_goes_on_in_changes_and_all_sites_train_on_the_same_bits(
    begun, tmp_path, monkeypatch, federation
):
    spy = Spy(monkeypatch)
    coordinate(study(federation), tmp_path)
    assert dict(spy.forms) == {1: ["whole"] * 3, **{round: ["change"] * 3 for round in (2, 3, 4)}}
    assert len(begun) == 4
    for models in begun.values():
        assert models.keys() == {"alder", "birch", "cedar"} and len(set(models.values())) == 1
    assert len({next(iter(models.values())) for models in begun.values()}) == 4


@BOTH
def test_a_site_that_lost_its_disk_says_so_and_is_sent_the_whole_model_in_the_same_round(
    begun, tmp_path, monkeypatch, federation
):
    def lose(site, kind, round, answer):
        if (site, kind, round) == ("birch", "train", 2):
            (folder,) = tmp_path.glob("sites/birch/**/studies")
            shutil.rmtree(folder)
        return answer

    spy = Spy(monkeypatch)
    grid, listener = coordinate(study(federation), tmp_path, lose)
    assert listener.refused == []
    assert sorted(spy.forms[3]) == ["change"] * 3 + ["whole"]
    assert [site for site, kind, round in grid.sent if (kind, round) == ("train", 3)].count("birch") == 2
    assert spy.forms[4] == ["change"] * 3
    assert all(len(set(models.values())) == 1 and len(models) == 3 for models in begun.values())


@BOTH
def test_a_damaged_model_at_a_site_is_noticed_and_sent_anew(begun, tmp_path, monkeypatch, federation):
    def damage(site, kind, round, answer):
        if (site, kind, round) == ("birch", "train", 2):
            (file,) = tmp_path.glob("sites/birch/**/segment-reference-000002.safetensors")
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
        return answer

    spy = Spy(monkeypatch)
    _, listener = coordinate(study(federation), tmp_path, damage)
    assert listener.refused == [] and sorted(spy.forms[3]) == ["change"] * 3 + ["whole"]
    assert len(set(begun["segment", 3].values())) == 1


def test_a_site_whose_answer_was_late_is_sent_the_whole_model_at_once(begun, tmp_path, monkeypatch):
    def late(site, kind, round, answer):
        return None if (site, kind, round) == ("birch", "train", 2) else answer

    spy = Spy(monkeypatch)
    grid, _ = coordinate(study(INT8), tmp_path, late)
    assert sorted(spy.forms[3]) == ["change"] * 2 + ["whole"]
    assert [site for site, kind, round in grid.sent if (kind, round) == ("train", 3)].count("birch") == 1
    assert spy.forms[4] == ["change"] * 3 and len(set(begun["segment", 3].values())) == 1


def test_a_site_that_is_asked_again_in_a_round_trains_on_the_same_bits_and_answers_the_same(begun, tmp_path):
    answers = []

    def lost_once(site, kind, round, answer):
        if (site, kind, round) == ("birch", "train", 2):
            answers.append(wire.content(answer.content["arrays"]))
            return None if len(answers) == 1 else answer
        return answer

    coordinate(study({**TOPK, "min_sites": 3}), tmp_path / "lost", lost_once)
    assert len(answers) == 2 and answers[0] == answers[1]
    coordinate(study({**TOPK, "min_sites": 3}), tmp_path / "whole")
    assert finals(tmp_path / "lost") == finals(tmp_path / "whole")


def test_a_site_that_lacks_the_whole_model_too_is_refused(small, tmp_path):
    def always(site, kind, round, answer):
        if site == "birch" and kind == "train":
            content = RecordDict({"config": ConfigRecord({"declined": "no model here", "lacks": True})})
            return Message(content, metadata=answer.metadata)
        return answer

    _, listener = coordinate(study(INT8, rounds=2), tmp_path, always)
    assert listener.refused == [("birch", "no model here")] * 2


# The coordinator's own model.


@BOTH
def test_the_coordinators_own_model_is_kept_and_evaluated_and_the_sites_model_validated(
    small, tmp_path, monkeypatch, federation
):
    from tests.server import fake_training

    seen = {}
    validate, evaluate = fake_training._Trainer.validate, fake_training.evaluate_student

    def validates(self):
        seen["val"] = {name: tensor.clone() for name, tensor in self.model.items()}
        return validate(self)

    def evaluates(config, student, *rest, **more):
        seen.setdefault("test", student)
        return evaluate(config, student, *rest, **more)

    monkeypatch.setattr(fake_training._Trainer, "validate", validates)
    monkeypatch.setattr("dusss_core.training.evaluate_student", evaluates)
    coordinate(study(federation), tmp_path)
    last = read_tensors(tmp_path / "checkpoints" / "segment-0004.safetensors")[0]
    model = {name: tensor for name, tensor in last.items() if not name.startswith(("server/", "reference/"))}
    assert model.keys() == read_model(tmp_path / "checkpoints" / "segment-0004.safetensors").keys()
    held = {name.removeprefix("reference/"): tensor for name, tensor in last.items() if name.startswith("reference/")}
    assert held.keys() == model.keys() and not torch.equal(held["body.weight"], model["body.weight"])
    assert finals(tmp_path)["student"] == digest_of_tensors(model)
    assert digest_of_tensors(seen["test"]) == digest_of_tensors(model)
    # what round 5 would begin with
    follows = Reference(compression.codec(federation["wire"], federation.get("topk_share", 0.05)))
    follows.resume(held)
    follows.bring_to(Phase.SEGMENT, 5, model)
    assert digest_of_tensors(seen["val"]) == follows.digest


def test_int8_ends_near_float32_and_topk_loses_nothing_for_good(small, tmp_path):
    ends = {}
    for name, federation in (("float32", {}), ("int8", INT8), ("topk", TOPK)):
        coordinate(study(federation, rounds=8), tmp_path / name)
        ends[name] = read_model(tmp_path / name / "checkpoints" / "student.safetensors")["body.weight"]
    start = training.initial_shared(study({}), Phase.SEGMENT)["body.weight"]
    moved = float((ends["float32"] - start).norm())
    assert 0 < float((ends["int8"] - ends["float32"]).norm()) < 0.02 * moved
    # less than a third of the numbers travel in a round, and yet most of the way is gone
    assert 0.02 * moved < float((ends["topk"] - ends["float32"]).norm()) < 0.5 * moved


# Killed, and resumed.

MOMENTS = [("on_round_end", 1), ("on_round_end", 3), ("on_site_done", 2), ("on_site_done", 9), ("on_phase_end", 1)]
CASES = [
    *(pytest.param(INT8, {}, *moment, id=f"int8-{moment[0]}-{moment[1]}") for moment in MOMENTS),
    *(pytest.param(TOPK, {}, *moment, id=f"topk-{moment[0]}-{moment[1]}") for moment in MOMENTS),
    pytest.param(TOPK, {"local_norm": True}, "on_site_done", 9, id="topk-fedbn"),
    pytest.param({**INT8, "strategy": "fedadam", "server_lr": 0.3}, {}, "on_round_end", 3, id="int8-fedadam"),
]


@pytest.mark.parametrize(("federation", "changes", "event", "at"), CASES)
def test_a_killed_run_resumes_to_the_same_bytes(small, quiet, tmp_path, monkeypatch, federation, changes, event, at):
    tiny = make_study(segment__rounds=3, federation=federation, **changes)
    simulate(tiny, tmp_path / "whole", reporter=quiet)
    small.forget()
    with pytest.raises(Killed):
        simulate(tiny, tmp_path / "killed", reporter=Killer(event, at))
    small.forget()  # a new process has no workbench
    spy = Spy(monkeypatch)
    simulate(tiny, tmp_path / "killed", reporter=quiet, resume=True)
    assert finals(tmp_path / "killed") == finals(tmp_path / "whole")
    assert _rounds(tmp_path / "killed") == _rounds(tmp_path / "whole")
    # what the sites hold is known again, and is not sent again
    assert all(set(forms) == {"change"} for round, forms in spy.forms.items() if round > 1)


# Bytes.


@pytest.mark.parametrize("phase", list(Phase))
def test_int8_takes_at_most_27_percent_of_float32_at_the_papers_size(phase):
    paper = load_study("demo", ["student.width=64", "vlm.image_encoder=resnet18", "local_norm=false"])
    model = training.initial_shared(paper, phase)
    draw = torch.Generator().manual_seed(1)
    after = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=draw) if tensor.is_floating_point() else tensor
        for name, tensor in model.items()
    }
    reference = Reference(Codec("int8"))
    reference.bring_to(phase, 1, model)
    assert reference.change is None
    reference.bring_to(phase, 2, after)
    whole = wire.size(wire.pack(model))
    assert wire.size(reference.change) <= 0.27 * whole
    assert wire.size(wire.pack(compress(Codec("int8"), after, model)[0])) <= 0.27 * whole
    assert phase != Phase.SEGMENT or whole > 50e6


# Hostile answers.


def hostile(codec, meddle, expected=None):
    expected = expected or {"w": torch.zeros(40, 10), "n.running_var": torch.ones(8)}
    after = {name: tensor + 1 for name, tensor in expected.items()}
    parts = dict(compress(codec, after, expected)[0])
    meddle(parts)
    content = RecordDict({"arrays": wire.pack(parts), "metrics": MetricRecord({"num-examples": 3})})
    return read_reply("a", message(content), expected, wire=codec.name, compressed=codec)


def put(name, make):
    return lambda parts: parts.update({name: make(parts.get(name))})


INT, TOP = Codec("int8"), Codec("topk", 0.1)


@pytest.mark.parametrize(
    ("codec", "meddle", "reason", "kind"),
    [
        (INT, put("w/scale", lambda s: s * torch.nan), "'w' holds NaN or infinity", DIVERGED),
        (INT, put("w/scale", lambda s: s * torch.inf), "'w' holds NaN or infinity", DIVERGED),
        (INT, put("n.running_var", lambda v: v * torch.nan), "holds NaN or infinity", DIVERGED),
        (INT, put("w/scale", lambda s: s[1:]), "'w/scale' is float32 1 instead of float32 2", ""),
        (INT, lambda parts: parts.pop("w/scale"), "'w/scale' is missing", ""),
        (INT, put("more", lambda _: torch.zeros(2)), "1 tensors that were not asked for", ""),
        (INT, put("w", lambda q: q.float()), "'w' is float32 400 instead of int8 400", ""),
        (TOP, put("w/value", lambda v: v * torch.nan), "'w' holds NaN or infinity", DIVERGED),
        (TOP, put("w/place", lambda p: p + 400), "not between 0 and 399", ""),
        (TOP, put("w/place", lambda p: p * 0), "not ascending", ""),
        (TOP, put("w/place", lambda _: torch.arange(400).int()), "int32 400 instead of int32 40", ""),
    ],
)
def test_a_hostile_answer_is_refused_with_the_reason(codec, meddle, reason, kind):
    reply = hostile(codec, meddle)
    assert reason in reply.reason and reply.kind == kind


def test_an_answer_with_too_many_bytes_is_not_decoded(monkeypatch):
    def never(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(compression, "expand", never)
    reply = hostile(INT, put("more", lambda _: torch.zeros(10**5)))
    assert "bytes, more than the" in reply.reason


def test_a_whole_model_where_a_change_was_asked_for_is_refused_and_names_the_site(small, tmp_path):
    def whole(site, kind, round, answer):
        if (site, kind, round) != ("birch", "train", 2):
            return answer
        model = training.initial_shared(study(INT8), Phase.SEGMENT)
        content = RecordDict({"arrays": wire.pack(model), "metrics": answer.content["metrics"]})
        return Message(content, metadata=answer.metadata)

    _, listener = coordinate(study(INT8), tmp_path, whole)
    ((site, reason),) = listener.refused
    assert site == "birch" and "is missing" in reason


def test_a_site_says_what_it_lacks_by_a_flag_and_not_by_its_words():
    content = RecordDict({"config": ConfigRecord({"declined": "x", "lacks": True})})
    assert read_reply("a", message(content)).kind == LACKS
    content = RecordDict({"config": ConfigRecord({"declined": "x", "lacks": "yes"})})
    assert read_reply("a", message(content)).kind == ""
