"""Whatever a site's answer holds is usable or refused by name, and a study goes on without that site."""

from __future__ import annotations

import json
import math
import random
from io import BytesIO

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from feddusss import wire
from server.rounds.figures import GROUPS
from server.rounds.replies import MASKED, MISCOUNTED, read_reply
from server.runs.runfolder import nested
from tests.server.conftest import finals
from tests.server.rounds.test_replies import EXPECTED, good, message
from tests.server.rounds.test_reply_checks import changed, lines, on, short, study  # noqa: F401
from tests.server.unreliable import coordinate

LAYERS = {
    "body.weight": torch.randn(3, 4),
    "norm.running_mean": torch.zeros(4),
    "norm.running_var": torch.ones(4),
    "norm.num_batches_tracked": torch.tensor(7),
}
COUNTS = {"n_labelled": 8, "n_unlabelled": 8, "n_val": 6, "n_test": 6}
HONEST = {"num-examples": 16, "train.loss": 0.7, "val.dice": 0.5, "test.dice": 0.5, "test.n": 6.0, "seconds": 1.5}


def of_npz() -> ArrayRecord:
    """What numpy opens as an archive and not as an array."""
    file = BytesIO()
    np.savez(file, w=np.zeros(6, dtype=np.uint8))
    return ArrayRecord({wire.KEY: Array("uint8", (6,), "numpy.ndarray", file.getvalue())})


def judged(sent: Message, expected=EXPECTED, **how):
    """The reply that `read_reply` makes, after it was used as a round uses it."""
    reply = read_reply("birch", sent, expected, counts=COUNTS, most_examples=16, **how)
    assert reply.accepted or (reply.reason and reply.reason.isprintable() and len(reply.reason) < 1000)
    line = {"phase": "segment", "round": 1, "site": "birch", "accepted": reply.accepted, **nested(reply.metrics)}
    text = json.dumps({**line, "texts": reply.texts, "reason": reply.reason}, allow_nan=False)
    read = json.loads(text)
    assert (read["site"], read["round"], read["accepted"]) == ("birch", 1, reply.accepted)
    assert all(isinstance(read.get(group, {}), dict) for group in GROUPS)
    # a thousand such figures, weighed, are still a number
    assert all(math.isfinite(1000 * 16 * value) for value in reply.metrics.values())
    assert all(-0.01 < reply.metrics.get(name, 0) < 1.01 for name in ("val.dice", "test.dice"))
    assert reply.metrics.get("test.n", 0) <= 6
    if reply.accepted and expected is not None:
        assert 0 < reply.examples <= 16 and math.isfinite(reply.norm)
        assert {name: tensor.shape for name, tensor in reply.tensors.items()} == {
            name: tensor.shape for name, tensor in expected.items()
        }
        if how.get("wire") != MASKED:
            assert all(torch.isfinite(tensor).all() for tensor in reply.tensors.values())
            assert all((t >= 0).all() for name, t in reply.tensors.items() if name.endswith("running_var"))
    return reply


# By name.


def test_an_archive_in_place_of_an_array_is_refused_by_name():
    assert judged(good(of_npz())).reason == "tensors: the array cannot be decoded"


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"test.dice": 1e308, "test.n": 6}, r"'test.dice' is 1e\+308, not between"),
        ({"val.dice": 5.0}, "'val.dice' is 5, not between"),
        ({"val.dice": -0.5}, "'val.dice' is -0.5"),
        ({"test.text_iou": 2}, "'test.text_iou' is 2"),
        ({"test.dice_2": 1.5}, "'test.dice_2' is 1.5"),
        ({"test.dice_pooled_1": 1.5}, "'test.dice_pooled_1' is 1.5"),
        ({"test.dice_low": -3.0}, "'test.dice_low' is -3"),
        ({"test.dice_from_20": 7e7}, "'test.dice_from_20' is 7e"),
        ({"test.n_positive": -1.0}, "'test.n_positive' is -1"),
        ({"train.judged_text": 1.5}, "'train.judged_text' is 1.5"),
        ({"train.text_share": -1.0}, "'train.text_share' is -1"),
        ({"pseudo.teacher_dice": 1.5}, "'pseudo.teacher_dice' is 1.5"),
        ({"personal.val_dice": 3}, "'personal.val_dice' is 3"),
        ({"test.hd95": -1}, "'test.hd95' is -1"),
        ({"test.text_hd95": 1e12}, r"'test.text_hd95' is 1e\+12"),
        ({"train.dsss_p50": 1e12}, r"'train.dsss_p50' is 1e\+12"),
        ({"train.personal_alpha": -1}, "'train.personal_alpha' is -1"),
        ({"personal.round": 1e12}, r"'personal.round' is 1e\+12"),
        ({"state.age": -1}, "'state.age' is -1"),
        ({"text_mask.n": 1e12}, r"'text_mask.n' is 1e\+12"),
        ({"test.n": 100}, "'test.n' is 100, not between 0 and 6"),
        ({"test.n": 2.5}, "'test.n' is 2.5, and no whole number"),
        ({"test.n_positive": 0.5}, "'test.n_positive' is 0.5, and no whole number"),
        ({"test.dice_from_20": 0.5}, "'test.dice_from_20' is 0.5, and no whole number"),
        ({"num-examples": 0.5}, "'num-examples' is 0.5, and no whole number"),
        ({"num-examples": 5e-324}, "'num-examples' is .*, and no whole number"),
        ({"train.loss": 1e300}, "'train.loss' is 1e"),
        ({"seconds": -5}, "'seconds' is -5"),
        ({"n_val": 10**18}, "'n_val' is 1e"),
        ({"ledger-charges": -1}, "'ledger-charges' is -1"),
        # names that a line of metrics.jsonl has another use for
        ({"val": 1.0, "val.dice": 0.5}, "metric name 'val' is not allowed"),
        ({"site": 1.0}, "metric name 'site' is not allowed"),
        ({"round": 1.0}, "metric name 'round' is not allowed"),
        ({"accepted.x": 1.0}, "metric name 'accepted.x' is not allowed"),
        ({"ledger-charges.x": 1.0}, "metric name 'ledger-charges.x' is not allowed"),
        ({f"train.x{i}": 0.0 for i in range(600)}, "601 figures"),
    ],
)
def test_a_figure_that_no_honest_site_sends_is_refused_by_name(metrics, reason):
    refused = judged(good(metrics={"num-examples": 3, **metrics}))
    assert not refused.accepted and refused.metrics == {}
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(refused.reason)


def test_more_test_pictures_than_the_site_told_of_may_be_new_ones():
    assert judged(good(metrics={"num-examples": 3, "test.n": 7})).kind == MISCOUNTED


@pytest.mark.parametrize("damage", [{"test.dice": 1e308}, {"val.dice": 1e300}, {"val": 1.0}, {"phase": 2.0}])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_no_figure_of_one_site_ends_a_study(short, tmp_path, damage, kind):  # noqa: F811
    def meddle(site, sort, round, answer):
        if site != "birch" or sort != kind:
            return answer
        content = RecordDict(dict(answer.content.items()))
        content["metrics"] = MetricRecord({**dict(answer.content["metrics"]), **damage})
        return Message(content, metadata=answer.metadata)

    _, listener = coordinate(study(), tmp_path, meddle)
    assert {site for site, _ in listener.refused} == {"birch"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["sites"]["alder"]["dice"] is not None
    assert (summary["sites"]["birch"]["dice"] is None) == (kind == "evaluate")


@pytest.mark.parametrize("told", [True, False])
def test_a_site_that_gives_its_budget_up_while_a_run_lasts_ends_no_study(short, tmp_path, told):  # noqa: F811
    """It told of no test pictures, and answers with figures of them, with or without their number."""

    def meddle(site, kind, round, answer):
        if site == "birch" and kind in ("query", "evaluate"):
            metrics = dict(answer.content["metrics"]) if kind == "evaluate" else {"n_records": 500}
            if not told:
                metrics.pop("test.n", None)
            answer.content["metrics"] = MetricRecord(metrics)
        return answer

    coordinate(study(), tmp_path, meddle)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["sites"]["birch"]["dice"] is not None
    assert (summary["sites"]["birch"]["n_test"] is not None) == told
    assert summary["global"]["dice_weighted"] is not None


@pytest.mark.parametrize(
    ("metrics", "texts", "told"),
    [
        ({"n_labelled": 8, "n_val": 10**18}, {}, "'n_val' is 1e"),
        ({"n_labelled": 8}, {"site": "*"}, "no name of a site"),
        ({"n_labelled": 8}, {"role": "judge"}, "role is 'judge'"),
    ],
)
def test_a_site_that_introduces_itself_impossibly_takes_no_part_by_name(short, tmp_path, metrics, texts, told):  # noqa: F811
    def meddle(site, kind, round, answer):
        if (site, kind) != ("birch", "query"):
            return answer
        config = {**dict(answer.content["config"]), **texts}
        content = RecordDict({"config": ConfigRecord(config), "metrics": MetricRecord(metrics)})
        return Message(content, metadata=answer.metadata)

    grid, listener = coordinate(study(), tmp_path, meddle)
    assert any("node 2 takes no part" in text and told in text for text in listener.messages)
    assert not [message for message in grid.sent if message[:2] == ("birch", "train")]
    assert set(json.loads((tmp_path / "summary.json").read_text())["sites"]) == {"alder", "cedar"}


# By thousands.

VALUES = [0, 1, -1, 0.5, 17, 10**8 + 1, 2**62, -(2**63), 1e18, 1e300, -1e308, math.nan, math.inf, -math.inf, 5e-324]
NAMES = [
    *HONEST,
    *GROUPS,
    "val.text_dice",
    "val.dice.x",
    "personal.round",
    "pseudo.n",
    "state.age",
    "n_test",
    "val.",
    ".",
    "",
    "site",
    "phase",
    "round",
    "accepted",
    "a" * 70,
    "Patient 7",
    "train.\u202e",
    "train.loss\n",
]
TEXTS = ["", "\x1b[2J", "a\nb", "x" * 5000, "\ud800", "birch", "*", "train"]


def mutated(draw: random.Random, tensors) -> Message:
    """An honest answer to which one to three things were done."""
    metrics, texts = dict(HONEST), {"site": "birch"}
    arrays = {} if tensors is None else {"arrays": bytearray(packed(tensors))}
    records: dict = {}
    for _ in range(draw.randint(1, 3)):
        draw.choice((_figure, _figure, _text, _bytes, _bytes, _head, _tensor, _record))(
            draw, metrics, texts, arrays, records, tensors or EXPECTED
        )
    content = RecordDict()
    for name, data in arrays.items():
        content[name] = data if isinstance(data, ArrayRecord) else record_of(bytes(data), draw)
    content["metrics"] = MetricRecord(metrics)
    content["config"] = ConfigRecord(texts)
    for name, record in records.items():
        content[name] = record
    if draw.random() < 0.02:
        return message(error=Error(draw.randint(-5, 300), draw.choice([*TEXTS, "no"])))
    return message(content)


def packed(tensors) -> bytes:
    return wire.pack(tensors)[wire.KEY].data


def record_of(data: bytes, draw: random.Random) -> ArrayRecord:
    if draw.random() < 0.1:
        shape = draw.choice([(), (0,), (len(data), 1), (2**40,)])
        return ArrayRecord({wire.KEY: Array(draw.choice(["uint8", "object", "x"]), shape, "numpy.ndarray", data)})
    return ArrayRecord({wire.KEY: Array("uint8", (len(data),), "numpy.ndarray", data)})


def _figure(draw, metrics, texts, arrays, records, tensors):
    value = draw.choice(VALUES)
    metrics[draw.choice(NAMES)] = [value, value] if draw.random() < 0.05 else value


def _text(draw, metrics, texts, arrays, records, tensors):
    name = draw.choice(["declined", "abstains", "site", "role", *TEXTS])
    texts[name] = draw.choice([*TEXTS, True, 3, 2.5, b"\xff" * 9, ["a", "b"], [1, 2]])


def _bytes(draw, metrics, texts, arrays, records, tensors):
    data = arrays.get("arrays")
    if not isinstance(data, bytearray) or not data:
        return
    way = draw.random()
    if way < 0.6:
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif way < 0.8:
        del data[draw.randrange(len(data)) :]
    else:
        data[draw.randrange(len(data)) : 0] = draw.randbytes(draw.randint(1, 300))


def _head(draw, metrics, texts, arrays, records, tensors):
    """The head of the file of tensors, cut out and put together anew."""
    head = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    entry = head["w"]
    entry[draw.choice(list(entry))] = draw.choice([[-1], [0, 2**70], "F32", None, 1.5, [1e300, 2], {}, [[[]]], "I8"])
    text = draw.choice([json.dumps(head), "[" * 50_000, '{"a":1,"a":2}', "\x00", "NaN"]).encode()
    file = len(text).to_bytes(8, "little") + text + draw.randbytes(24)
    arrays["arrays"] = ArrayRecord({wire.KEY: Array(np.frombuffer(file, dtype=np.uint8))})


def _tensor(draw, metrics, texts, arrays, records, tensors):
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    name = draw.choice(list(changed))
    value = draw.choice([math.nan, math.inf, -1e30, 3e38, -1.0, 0.0, 1e-40])
    if changed[name].is_floating_point():
        changed[name].fill_(value)
    else:
        changed[name].fill_(draw.choice([-1, 2**62, 0]))
    if draw.random() < 0.3:
        changed[draw.choice(["x", name, "y" * 400])] = changed.pop(name).to(draw.choice([torch.float64, torch.int8]))
    arrays["arrays"] = bytearray(packed(changed))


def _record(draw, metrics, texts, arrays, records, tensors):
    name = draw.choice(["arrays", "metrics", "config", "more", "secure"])
    records[name] = draw.choice(
        [MetricRecord({"num-examples": 1}), ConfigRecord({"declined": "no"}), ArrayRecord({}), of_npz(), ConfigRecord()]
    )


@pytest.fixture
def unwarned(monkeypatch):
    """Flower tells of every record that takes the place of another."""
    monkeypatch.setattr("flwr.app.message.recorddict.log", lambda *_: None)


def fuzzed(seed: int, count: int) -> tuple[int, int]:
    draw, accepted = random.Random(seed), 0
    for i in range(count):
        expected = (EXPECTED, LAYERS, None)[i % 3]
        sent = mutated(draw, expected)
        accepted += judged(sent, expected, wire=draw.choice(["float32", "float32", "bfloat16", MASKED])).accepted
    return accepted, count


def test_two_thousand_damaged_answers_are_usable_or_refused_by_name(unwarned):
    accepted, count = fuzzed(1, 2_000)
    assert 0.01 * count < accepted < 0.5 * count  # some are harmless: both ways were taken


@pytest.mark.slow
def test_forty_thousand_damaged_answers_are_usable_or_refused_by_name(unwarned):
    accepted, count = fuzzed(2, 40_000)
    assert 0.01 * count < accepted < 0.5 * count


def test_an_answer_that_cannot_even_be_looked_at_is_refused_and_not_raised(monkeypatch):
    monkeypatch.setattr("server.rounds.replies.decoded", lambda *_: 1 / 0)
    assert read_reply("birch", good(), EXPECTED).reason == "its answer cannot be read (ZeroDivisionError)"


# Statistics.


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("norm.running_var", -1e30, "tensor 'norm.running_var' holds a variance below 0"),
        ("norm.running_var", -1e-3, "tensor 'norm.running_var' holds a variance below 0"),
        (
            "norm.running_var",
            1e30,
            "statistics of 'norm' are of numbers .* times as large as the median of the others'",
        ),
        ("norm.running_mean", 1e20, "statistics of 'norm' are of numbers"),
        ("norm.num_batches_tracked", 2**62, "tensor 'norm.num_batches_tracked' counts"),
        ("norm.num_batches_tracked", -1, "tensor 'norm.num_batches_tracked' counts"),
    ],
)
def test_impossible_statistics_are_refused_by_site_and_change_no_bit(short, tmp_path, name, value, reason):  # noqa: F811
    def spoil(tensors, metrics):
        tensors[name].fill_(value)

    _, listener = coordinate(study(), tmp_path / "spoilt", on("birch", 2, lambda answer: changed(answer, spoil)))
    ((site, told),) = listener.refused
    assert site == "birch"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(told)
    coordinate(study(), tmp_path / "lost", on("birch", 2, lambda answer: None))
    assert finals(tmp_path / "spoilt") == finals(tmp_path / "lost")


def test_the_honest_have_statistics_as_different_as_hospitals_are(short, tmp_path):  # noqa: F811
    def brighter(tensors, metrics):
        tensors["norm.running_var"] *= 400

    _, listener = coordinate(study(), tmp_path, on("birch", 2, lambda answer: changed(answer, brighter)))
    assert listener.refused == [] and lines(tmp_path, 2)["birch"]["accepted"]
