"""Bad answers are refused with the site and the reason, and the round goes on with the rest."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.metadata import Metadata

from feddusss import wire
from server.rounds.replies import MISCOUNTED, read_reply
from server.simulation.simulate import simulate
from tests.server.conftest import make_study

EXPECTED = {"w": torch.zeros(2, 3), "n": torch.tensor(0)}


def message(content=None, error=None):
    metadata = Metadata(
        run_id=1,
        message_id="",
        src_node_id=1,
        dst_node_id=1,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=1.0,
        message_type="train",
    )
    return Message(metadata=metadata, content=content, error=error)


def good(tensors=None, metrics=None):
    tensors = EXPECTED if tensors is None else tensors
    arrays = tensors if isinstance(tensors, ArrayRecord) else wire.pack(tensors)
    return message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics or {"num-examples": 3})}))


def _file(content):
    """A record whose one array holds these bytes."""
    return ArrayRecord({wire.KEY: Array(np.frombuffer(content, dtype=np.uint8))})


def _with_data(data):
    """A record whose one array claims to be a file of numpy and is not."""
    return ArrayRecord({wire.KEY: Array("uint8", (6,), "numpy.ndarray", data)})


def test_a_site_has_at_most_the_weight_of_the_pictures_that_it_told_of():
    for claimed, accepted in ((16, True), (17, False)):
        reply = read_reply("a", good(metrics={"num-examples": claimed}), EXPECTED, most_examples=16)
        assert (reply.accepted, reply.kind == MISCOUNTED) == (accepted, not accepted)


def test_a_good_answer_is_accepted_with_its_bytes_counted():
    reply = read_reply("a", good(), EXPECTED)
    assert reply.accepted and reply.examples == 3
    assert torch.equal(reply.tensors["w"], EXPECTED["w"])
    assert reply.bytes_up == wire.size(wire.pack(EXPECTED)) > sum(tensor.nbytes for tensor in EXPECTED.values())


def test_an_update_has_its_size_however_large_its_numbers_are():
    """Their squares are more than single precision holds; without a size it would pass the screen."""
    most = torch.finfo(torch.float32).max
    reply = read_reply("a", good({**EXPECTED, "w": torch.full((2, 3), most)}), EXPECTED)
    assert reply.accepted and reply.norm == pytest.approx(6**0.5 * most)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (None, "no answer in time"),
        (message(error=Error(2, "boom\ntraceback")), "error 2: boom$"),
        (good({"w": EXPECTED["w"]}), "'n' is missing"),
        (good({**EXPECTED, "teacher.w": torch.zeros(1)}), "'teacher.w' was not asked for"),
        (good({**EXPECTED, "w": torch.zeros(3, 2)}), "float32 3x2 instead of float32 2x3"),
        (good({**EXPECTED, "w": torch.zeros(2, 3, dtype=torch.float64)}), "float64 2x3 instead of float32 2x3"),
        (good({**EXPECTED, "w": torch.full((2, 3), float("nan"))}), "'w' holds NaN or infinity"),
        (good({**EXPECTED, "w": torch.full((2, 3), float("inf"))}), "'w' holds NaN or infinity"),
        (good(ArrayRecord({"w": Array(np.zeros(6)), "n": Array(np.array(0))})), "2 arrays instead of one"),
        (good(ArrayRecord({wire.KEY: Array(np.zeros(6))})), "does not hold bytes"),
        (good(_with_data(b"garbage")), "the array cannot be decoded"),
        (good(_file(b"garbage")), "the tensors cannot be decoded"),
        (good(_file(safetensors.torch.save(EXPECTED)[:-1])), "the tensors cannot be decoded"),
        (good(_file(b"x" * 10_000)), "10128 bytes, more than the"),
        (good(metrics={"num-examples": 0}), "'num-examples' is 0"),
        (good(metrics={"num-examples": -5}), "'num-examples' is -5"),
        (good(metrics={"num-examples": float("nan")}), "'num-examples' is missing"),
        (good(metrics={"num-examples": 1e12}), "'num-examples' is 1e"),
        (good(metrics={"train.loss": 1.0}), "'num-examples' is missing"),
        (good(metrics={"num-examples": 3, "dice.per.image": [0.1, 0.2]}), "is a list"),
        (good(metrics={"num-examples": 3, "Patient 7": 1.0}), "metric name 'Patient 7' is not allowed"),
        (message(RecordDict({"metrics": MetricRecord({"num-examples": 3})})), "instead of \\['arrays'\\]"),
        (message(RecordDict({"config": ConfigRecord({"declined": "not tonight"})})), "^not tonight$"),
    ],
)
def test_a_bad_answer_is_refused_with_the_reason(reply, reason):
    refused = read_reply("a", reply, EXPECTED)
    assert not refused.accepted and refused.tensors == {}
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(refused.reason)


@pytest.mark.parametrize(
    ("accuses", "named"), [(["birch"], {"birch"}), ("birch", set()), (7, set()), (b"birch", set()), ([1.5], set())]
)
def test_a_refusal_is_laid_to_sites_by_a_list_of_names_alone(accuses, named):
    told = ConfigRecord({"declined": "the keys of 'cedar' are wrong", "accuses": accuses})
    assert read_reply("alder", message(RecordDict({"config": told}))).accuses == named


def test_figures_that_are_not_finite_are_left_out():
    reply = read_reply("a", good(metrics={"num-examples": 3, "val.dice": float("nan"), "train.loss": 0.5}), EXPECTED)
    assert reply.metrics == {"num-examples": 3, "train.loss": 0.5}


def test_the_round_goes_on_without_the_site_that_sent_nan(fake, quiet, tmp_path, monkeypatch):
    import client.work.training

    shared = fake.Segmenter.shared

    def damaged(self, **_):
        tensors = shared(self)
        if self.site == "birch" and self.step == 2:  # after its second round
            tensors["body.bias"] = torch.full((4,), float("nan"))
        return tensors

    monkeypatch.setattr(fake.Segmenter, "shared", damaged)
    monkeypatch.setattr(client.work.training, "_check_finite", lambda shared: None)  # a site that does not look
    simulate(make_study(segment__rounds=3), tmp_path, reporter=quiet)
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    refused = [line for line in lines if line.get("accepted") is False]
    assert [(line["site"], line["phase"], line["round"]) for line in refused][:1] == [("birch", "segment", 2)]
    assert "'body.bias' holds NaN" in refused[0]["reason"]
    assert "birch: tensor 'body.bias' holds NaN" in (tmp_path / "log.txt").read_text()
    last = [line for line in lines if line["phase"] == "segment" and line["round"] == 3 and line["site"] == "alder"]
    assert last[0]["accepted"] is True
