"""Promise 4: every byte that leaves a site is read: no teacher, no moments, no picture, no sentence, no id."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from flwr.app import Error, Message
from flwr.common.serde import message_to_proto

from client.app import app
from client.declined import Declined
from client.door.exit import decline
from client.state.chain import LOG, sha256
from dusss_core.files import read_tensors
from dusss_core.manifest import read_manifest
from feddusss import standing
from server.runs.events import Reporter
from server.simulation import inprocess
from server.simulation.simulate import simulate
from tests.server.conftest import HOSPITALS, make_study


@pytest.fixture
def answers(monkeypatch):
    """Every answer of every site of the runs that follow."""
    seen: list[Message] = []

    class Tapped(inprocess.InProcessGrid):
        def _work(self, message):
            reply = super()._work(message)
            seen.append(reply)
            return reply

    monkeypatch.setattr(inprocess, "InProcessGrid", Tapped)
    return seen


GIVEN_SENTENCES = {"method": {"objective": "lvit"}, "student": {"width": 4, "network": "lvit"}}
"""The student is given sentences, and the site remembers what it said of each picture."""
PERSONAL = {
    "ditto": {"kind": "ditto"},
    "fedrep": {"kind": "fedrep", "head": "decoder"},
    "apfl": {"kind": "apfl"},
    "finetune": {"kind": "finetune", "steps": 2, "lr_ratio": 1},
}
"""Settings of a student that is a site's own."""


@pytest.mark.parametrize("method", ["stand-in", "true method", "given sentences", *PERSONAL])
def test_no_answer_carries_anything_private(request, answers, tmp_path, method):
    if method == "stand-in":
        request.getfixturevalue("fake")
    # at least two steps per round: after its first step the teacher equals the student (Eq. 12); and three, since what
    # batch norm has seen in the first two is what it has seen in Ditto's student, which nothing pulls at first
    hospitals = [{**hospital, "train": 24} for hospital in HOSPITALS]
    changes = GIVEN_SENTENCES if method == "given sentences" else {"personal": PERSONAL.get(method, "none")}
    study = make_study(hospitals, **changes)
    simulate(study, tmp_path, reporter=Reporter())
    kinds = [reply.metadata.message_type for reply in answers]
    rounds = sum(study.phases().values())
    assert kinds.count("query") == 2 and kinds.count("train") == 2 * rounds and kinds.count("evaluate") >= 2
    everything = [message_to_proto(reply).SerializeToString() for reply in answers]

    for site in ("alder", "birch"):
        records = read_manifest(tmp_path / "sites" / site / "manifest.csv")
        words = {record.id for record in records} | {record.text for record in records if record.text}
        words |= {str(tmp_path), "manifest.csv"}
        assert len(words) > 20
        leaked = [word for word in words for sent in everything if word.encode() in sent]
        assert not leaked

        own, files = 0, list((tmp_path / "sites" / site / "state").rglob("*.safetensors"))
        for path in (path for path in files if "-personal-" in path.name):
            for name, tensor in read_tensors(path)[0].items():
                # of FedRep's student the head alone is the site's own
                stays = method != "fedrep" or name.startswith(("head.", "up."))
                if stays and tensor.numel() >= 16 and tensor.float().std() > 0:
                    own += 1
                    assert not any(tensor.numpy().tobytes() in sent for sent in everything), name
        assert (own > 10) == (method in PERSONAL)

        kept = 0
        kinds_of_state = ("*-00000[12].safetensors", "text_*.safetensors")
        state = [path for path in files if any(map(path.match, kinds_of_state)) and "-personal-" not in path.name]
        for path in state:
            for name, tensor in read_tensors(path)[0].items():
                if name.startswith(("objective.", "optimizer.", "personal.")):
                    assert not any(name.encode() in sent for sent in everything), name
                # a constant could be anywhere by chance, and so could a few numbers that steps of equal length moved
                fewest = 16 if name.startswith("personal.") else 4
                if tensor.numel() >= fewest and tensor.float().std() > 0:
                    kept += 1
                    assert not any(tensor.numpy().tobytes() in sent for sent in everything), name
        assert kept > 2

    for reply in answers:
        assert reply.has_content()
        assert set(reply.content) <= {"arrays", "metrics", "config"}
        # a site's finished student is written when it is tested, and stays
        assert reply.metadata.message_type == "train" or not reply.content.array_records
        for record in reply.content.metric_records.values():
            assert all(isinstance(value, int | float) for value in record.values())
        texts = {key for record in reply.content.config_records.values() for key in record}
        assert texts <= {"site", "release", "role", "vlm", "audit_head"}


def test_an_exception_in_the_client_app_becomes_an_error_reply_as_in_flowers_runtime(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.setattr("client.app._site_file", lambda context: 1 / 0)
    grid = inprocess.InProcessGrid(app, [tmp_path / "a" / "site.yaml"])
    from flwr.app import RecordDict

    (reply,) = grid.send_and_receive([Message(RecordDict(), 1, "train")])
    assert isinstance(reply.error, Error) and "ZeroDivisionError" in reply.error.reason


def test_a_refusal_is_one_sentence_flags_the_sites_it_is_laid_to_and_the_logs_head(tmp_path):
    flags = ("abstains", "diverged", "spent", "lacks", "exhausted", "lost")
    site = SimpleNamespace(state_dir=tmp_path, privacy=SimpleNamespace(epsilon=None))
    for raised in ({}, dict.fromkeys(flags, True), {"accuses": ["birch", "cedar"]}):
        reply = decline(site, "train", Declined("the reason", **raised))
        assert list(reply) == ["config"]
        told = dict(reply["config"])
        assert told.pop("audit_head") == sha256((tmp_path / LOG).read_bytes().splitlines()[-1])
        assert told.pop("declined") == "the reason"
        assert told == {**{"abstains": False, "diverged": False}, **raised}
        line = json.loads((tmp_path / LOG).read_bytes().splitlines()[-1])
        assert line["fields"].get("accuses") == raised.get("accuses")


def test_what_a_site_works_for_is_one_word():
    reply = standing.told("lungs")
    assert list(reply) == ["standing"] and dict(reply["standing"]) == {"busy": "lungs"}
