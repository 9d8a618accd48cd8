"""What the coordinator does about sites that are late, lost, back, renumbered, impostors, or send too much."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from dusss_core.errors import UserError
from feddusss import wire
from server.rounds import roster
from server.rounds.coordinator import RoundFailed
from server.rounds.replies import read_reply
from server.rounds.screening import too_large
from server.runs.checkpoints import read_model
from tests.server.conftest import HOSPITALS, finals, make_study
from tests.server.rounds.test_replies import message
from tests.server.unreliable import coordinate, error

THREE = [{**HOSPITALS[0], "name": name} for name in ("alder", "birch", "cedar")]
ONE_PHASE = {"method": {"preset": "mean_teacher"}}


@pytest.fixture(autouse=True)
def short(fake, monkeypatch):
    """Nobody waits long in these tests."""
    monkeypatch.setattr("server.rounds.exchange.POLL_S", 0.01)
    for name in ("POLL_S", "_LOOK_S", "_JOIN_S", "_AGAIN_S"):
        monkeypatch.setattr(roster, name, 0.01)
    monkeypatch.setattr(roster, "_SAY_S", 0.02)


def study(hospitals=THREE, rounds=3, **federation):
    federation = {"round_timeout_s": 0.05, "start_timeout_s": 0.2, **federation}
    return make_study(hospitals, segment__rounds=rounds, federation=federation, **ONE_PHASE)


def lines(out, round):
    """(site -> its line) of a round of the segment phase."""
    found = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["site"]: line for line in found if line["round"] == round and "accepted" in line}


def changed(answer: Message, change) -> Message:
    """The answer with tensors and metrics that `change` has changed in place."""
    tensors = dict(wire.unpack(answer.content["arrays"]))
    metrics = dict(answer.content["metrics"])
    change(tensors, metrics)
    content = RecordDict({"arrays": wire.pack(tensors), "metrics": MetricRecord(metrics)})
    return Message(content, metadata=answer.metadata)


def on(site, round, do):
    """A meddler that does `do(answer)` to one site's answer in one round (or in all, with round None)."""

    def meddle(who, kind, number, answer):
        return do(answer) if kind == "train" and who == site and round in (None, number) else answer

    return meddle


# Late and lost.


@pytest.mark.parametrize(
    ("do", "reason"), [(lambda answer: None, "no answer in time"), (error, "its connection was lost")]
)
def test_a_late_or_lost_site_is_left_out_of_the_round_by_name(tmp_path, do, reason):
    _, listener = coordinate(study(), tmp_path, on("birch", 2, do))
    assert listener.refused == [("birch", reason)]
    assert {site: line["accepted"] for site, line in lines(tmp_path, 2).items()} == {
        "alder": True,
        "birch": False,
        "cedar": True,
    }
    assert lines(tmp_path, 3)["birch"]["accepted"] is True
    assert f"segment round 2: birch: {reason}" in (tmp_path / "log.txt").read_text()


def test_an_answer_to_an_old_round_is_never_used(tmp_path):
    late = {}

    def arrives_later(site, kind, round, answer):
        if (site, kind, round) == ("birch", "train", 2):
            late[answer.metadata.reply_to_message_id] = answer
            return None
        if round == 3:
            arrives_later.grid._replies.update(late)
        return answer

    def prepare(grid):
        arrives_later.grid = grid

    grid, listener = coordinate(study(), tmp_path / "late", arrives_later, prepare=prepare)
    assert len(late) == 1 and late.items() <= grid._replies.items()
    assert listener.refused == [("birch", "no answer in time")]
    coordinate(study(), tmp_path / "lost", on("birch", 2, lambda answer: None))
    assert finals(tmp_path / "late") == finals(tmp_path / "lost")


def test_a_round_with_too_few_answers_asks_the_lost_sites_again_and_only_those(tmp_path):
    tries = []

    def lost_once(answer):
        tries.append(1)
        return error(answer) if len(tries) == 1 else answer

    grid, listener = coordinate(study(min_sites=3), tmp_path, on("cedar", 2, lost_once))
    assert [message for message in grid.sent if message[1:] == ("train", 2)] == [
        ("alder", "train", 2),
        ("birch", "train", 2),
        ("cedar", "train", 2),
        ("cedar", "train", 2),
    ]
    assert any("asking again those that were lost" in text for text in listener.messages)
    assert all(line["accepted"] for line in lines(tmp_path, 2).values())


def test_a_round_that_was_asked_again_gives_the_weights_of_one_that_was_not(tmp_path):
    tries = []

    def lost_once(answer):
        tries.append(1)
        return None if len(tries) == 1 else answer

    coordinate(study(min_sites=3), tmp_path / "lossy", on("cedar", 2, lost_once))
    coordinate(study(min_sites=3), tmp_path / "whole")
    assert finals(tmp_path / "lossy") == finals(tmp_path / "whole")


def test_a_lost_site_is_not_waited_for_where_the_others_are_too_few_whatever_it_does(tmp_path):
    def of_birch_and_cedar(site, kind, round, answer):
        if kind == "train" and round == 2 and site == "birch":
            told = ConfigRecord({"declined": "no masks", "abstains": True})
            return Message(RecordDict({"config": told}), metadata=answer.metadata)
        return None if kind == "train" and round == 2 and site == "cedar" else answer

    with pytest.raises(UserError, match=r"2 of 3 sites can take part, 3 needed[^>]*birch: no masks"):
        coordinate(study(min_sites=3, start_timeout_s=600.0), tmp_path, of_birch_and_cedar)


def test_a_site_that_stays_lost_fails_the_round_and_the_run_can_go_on_later(tmp_path):
    with pytest.raises(RoundFailed, match=r"2 of 3 sites could be used, 3 needed.*--resume[^>]*cedar: no answer"):
        coordinate(study(min_sites=3, retries=1), tmp_path, on("cedar", 2, lambda answer: None))
    _, listener = coordinate(study(min_sites=3, retries=1), tmp_path)
    assert listener.rounds[0][:2] == ("segment", 2)


# Gone and back.


def test_a_site_that_is_gone_for_two_rounds_is_named_and_joins_again(tmp_path):
    def prepare(grid):
        def look(looks):
            trained = {round for _, kind, round in grid.sent if kind == "train"}
            grid.away = {"birch"} if max(trained, default=0) in (1, 2) else set()

        grid.on_look = look

    grid, listener = coordinate(study(rounds=5), tmp_path, prepare=prepare)
    asked = [round for site, kind, round in grid.sent if (site, kind) == ("birch", "train")]
    assert asked == [1, 4, 5]
    assert listener.refused == [("birch", "not connected")] * 2
    assert lines(tmp_path, 2)["birch"]["reason"] == "not connected"
    assert lines(tmp_path, 4)["birch"]["state"]["age"] == 2


def test_a_site_that_comes_late_joins_between_rounds(tmp_path):
    def prepare(grid):
        grid.away = {"cedar"}
        grid.on_look = lambda looks: (
            grid.away.discard("cedar") if ("alder", "train", 1) in grid.sent else None  # amid round 1
        )

    grid, _ = coordinate(study(), tmp_path, prepare=prepare)
    assert [round for site, kind, round in grid.sent if (site, kind) == ("cedar", "train")] == [2, 3]


def test_a_question_whose_answer_is_lost_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(roster, "_ANSWER_S", 0.05)
    lost = []

    def meddle(site, kind, round, answer):
        if (site, kind) == ("cedar", "query") and not lost:
            lost.append(answer)
            return None
        return answer

    grid, _ = coordinate(study(rounds=4), tmp_path, meddle)
    assert sum(message[:2] == ("cedar", "query") for message in grid.sent) == 2
    assert ("cedar", "train", 4) in grid.sent


def test_a_site_with_a_new_node_replaces_its_old_one(tmp_path):
    def prepare(grid):
        def look(looks):
            if ("cedar", "train", 1) in grid.sent and 77 not in grid._names:
                grid.renumber("cedar", 77)

        grid.on_look = look

    _, listener = coordinate(study(), tmp_path, prepare=prepare)
    assert "site 'cedar' is back as node 77" in listener.messages
    assert all(lines(tmp_path, round)["cedar"]["accepted"] for round in (1, 2, 3))


def test_a_second_node_of_a_site_takes_no_part_while_the_first_is_there(tmp_path):
    def prepare(grid):
        grid._names[77], grid._contexts[77] = "birch", grid._contexts[2]

    grid, listener = coordinate(study(), tmp_path, prepare=prepare)
    assert any("node 77 takes no part: site 'birch' is already there as node 2" in text for text in listener.messages)
    assert [message for message in grid.sent if message[1:] == ("train", 1)] == [
        ("alder", "train", 1),
        ("birch", "train", 1),
        ("cedar", "train", 1),
    ]


def test_a_site_cannot_speak_for_another_whose_key_it_does_not_have(tmp_path):
    def prepare(grid):
        grid.registered = {"alder": "alder", "birch": "birch", "cedar": "dogwood"}

    grid, listener = coordinate(study(), tmp_path, prepare=prepare)
    assert any("registered for 'dogwood', and it says that it is 'cedar'" in text for text in listener.messages)
    assert not [message for message in grid.sent if message[:2] == ("cedar", "train")]


def test_waiting_for_sites_says_who_is_missing_until_the_deadline(tmp_path):
    waiting = study(sites=["alder", "birch", "cedar"])
    heard = []

    def prepare(grid):
        grid.away = {"cedar"}
        heard.append(grid)

    with pytest.raises(UserError, match="sites that are not there: cedar"):
        coordinate(waiting, tmp_path, prepare=prepare, wait_s=0.2)
    assert "waiting for sites" in (log := (tmp_path / "log.txt").read_text())
    assert "sites that are not there: cedar" in log


def test_who_is_missing_is_said_every_half_minute(tmp_path, monkeypatch):
    from server.rounds import roster

    def prepare(grid):
        grid.away = {"cedar"}

    # here time is shortened for all tests, so the true number is that of the source
    assert "\n_SAY_S = 30.0\n" in Path(roster.__file__).read_text(encoding="utf-8")
    told = {}
    for every in (30.0, 0.05):
        monkeypatch.setattr(roster, "_SAY_S", every)
        with pytest.raises(UserError, match="cedar"):
            coordinate(study(sites=["alder", "cedar"]), tmp_path / str(every), prepare=prepare, wait_s=0.6)
        told[every] = (tmp_path / str(every) / "log.txt").read_text().count("waiting for sites")
    assert told[30.0] == 0 and 2 <= told[0.05] <= 13


def test_a_round_waits_until_enough_sites_are_connected_again(tmp_path):
    def prepare(grid):
        def look(looks):
            after_first = ("cedar", "train", 1) in grid.sent and ("alder", "train", 2) not in grid.sent
            prepare.waited = prepare.waited + 1 if after_first else prepare.waited
            grid.away = {"birch", "cedar"} if after_first and prepare.waited < 6 else set()

        grid.on_look = look

    prepare.waited = 0
    _, listener = coordinate(study(min_sites=3, start_timeout_s=20), tmp_path, prepare=prepare)
    assert all(line["accepted"] for line in lines(tmp_path, 2).values())
    assert prepare.waited >= 6
    assert any("sites that are not there: birch, cedar" in text for text in listener.messages)


# Too much.


def test_an_update_a_thousand_times_too_large_is_refused_by_name_and_the_round_goes_on(tmp_path):
    def enlarge(tensors, metrics):
        tensors["body.weight"] *= 1000

    meddle = on("birch", 2, lambda answer: changed(answer, enlarge))
    _, listener = coordinate(study(), tmp_path, meddle)
    ((site, reason),) = listener.refused
    assert site == "birch" and "times as large as the median of the others'" in reason and "max_norm_ratio" in reason
    assert lines(tmp_path, 2)["birch"]["accepted"] is False and lines(tmp_path, 3)["birch"]["accepted"] is True
    assert lines(tmp_path, 2)["birch"]["update"]["norm"] > 100 * lines(tmp_path, 2)["alder"]["update"]["norm"]


def test_a_refused_site_changes_no_bit_of_the_model(tmp_path):
    def enlarge(tensors, metrics):
        tensors["body.weight"] *= 1000

    coordinate(study(), tmp_path / "too large", on("birch", 2, lambda answer: changed(answer, enlarge)))
    coordinate(study(), tmp_path / "lost", on("birch", 2, lambda answer: None))
    assert finals(tmp_path / "too large") == finals(tmp_path / "lost")


def test_with_two_sites_sizes_are_not_compared_and_the_log_says_so(tmp_path):
    def enlarge(tensors, metrics):
        tensors["body.weight"] *= 1000

    _, listener = coordinate(study(THREE[:2]), tmp_path, on("birch", 2, lambda answer: changed(answer, enlarge)))
    assert listener.refused == []
    assert (tmp_path / "log.txt").read_text().count("fewer than 3 answers the sizes of updates are not compared") == 1


def test_the_limit_can_be_turned_off(tmp_path):
    def enlarge(tensors, metrics):
        tensors["body.weight"] *= 1000

    meddle = on("birch", 2, lambda answer: changed(answer, enlarge))
    _, listener = coordinate(study(max_norm_ratio=None), tmp_path, meddle)
    assert listener.refused == []


@pytest.mark.parametrize(
    ("norms", "examples", "refused"),
    [
        ({"a": 1, "b": 1, "c": 10.1}, {}, {"c"}),
        ({"a": 1, "b": 1, "c": 9.9}, {}, set()),
        # of the others alone: with its own the median would be 9
        ({"a": 1, "b": 9, "c": 60}, {}, {"c"}),
        # ten times the pictures, ten times the steps
        ({"a": 1, "b": 1, "c": 60}, {"c": 1000}, set()),
        ({"a": 1, "b": 1, "c": 101}, {"c": 1000}, {"c"}),
        # few pictures give no less room
        ({"a": 1, "b": 1, "c": 9.9}, {"c": 1}, set()),
        ({"a": 1, "b": 1, "c": 1, "d": 50, "e": 60}, {}, {"d", "e"}),
        ({"a": 0, "b": 0, "c": 1}, {}, set()),
        ({"a": 1, "b": 1000}, {}, set()),
    ],
)
def test_a_norm_is_compared_with_the_median_of_the_others(norms, examples, refused):
    assert too_large(norms, {site: examples.get(site, 100) for site in norms}, 10).keys() == refused


def test_a_site_cannot_claim_more_pictures_than_it_said_it_has(tmp_path):
    def claim(tensors, metrics):
        metrics["num-examples"] = 10**8

    grid, listener = coordinate(study(), tmp_path, on("birch", 2, lambda answer: changed(answer, claim)))
    said = "'num-examples' is 1e+08, more than the 16 training pictures that it said it has"
    assert listener.refused == [("birch", said)]
    # it may have got new pictures: it is asked again what it has
    assert sum(message[:2] == ("birch", "query") for message in grid.sent) == 2


# bfloat16 on the wire.


def test_bfloat16_halves_the_bytes_and_keeps_the_weights_within_one_rounding_a_round(tmp_path):
    big = {"alder": 0.0}

    def watch(site, kind, round, answer):
        if kind == "train":
            tensors = wire.unpack(answer.content["arrays"])
            big[site] = tensors["body.weight"].dtype
            assert tensors["norm.running_var"].dtype == torch.float32
            assert tensors["norm.num_batches_tracked"].dtype == torch.int64
        return answer

    coordinate(study(wire="bfloat16"), tmp_path / "bf16", watch)
    assert set(big.values()) == {torch.bfloat16}
    coordinate(study(), tmp_path / "float32")
    path = "checkpoints/student.safetensors"
    rounded, whole = read_model(tmp_path / "bf16" / path), read_model(tmp_path / "float32" / path)
    for name, tensor in whole.items():
        assert rounded[name].dtype == tensor.dtype
        # three rounds, each with a rounding of the model that goes down and of the difference that comes up
        torch.testing.assert_close(rounded[name], tensor, rtol=6 * 2**-9, atol=6 * 2**-9 * float(tensor.abs().max()))
    assert not torch.equal(rounded["body.weight"], whole["body.weight"])


def test_rounding_errs_by_at_most_two_to_the_minus_nine_and_small_steps_survive():
    draw = torch.Generator().manual_seed(1)
    model = {"w": torch.randn(1000, generator=draw)}
    step = {"w": torch.randn(1000, generator=draw) * 1e-5}
    sent = wire.widened(wire.rounded(wire.difference({"w": model["w"] + step["w"]}, model)))
    assert ((sent["w"] - step["w"]).abs() <= step["w"].abs() * 2**-9 + 2e-7).all()
    arrived = wire.added(sent, model)["w"] - model["w"]
    # rounding the sum instead would have kept hardly any of them
    assert (arrived != 0).float().mean() > 0.99
    assert (wire.rounded({"w": model["w"] + step["w"]})["w"] != wire.rounded(model)["w"]).float().mean() < 0.05


def test_bytes_of_a_model_halve():
    model = {"w": torch.randn(4000, 10), "n.running_var": torch.ones(8)}
    assert wire.size(wire.pack(wire.rounded(model))) < 0.51 * wire.size(wire.pack(model))


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_an_answer_of_the_other_wire_type_is_refused(tmp_path, asked):
    expected = {"w": torch.zeros(2, 3)}
    other = expected if asked == "bfloat16" else wire.rounded(expected)
    content = RecordDict({"arrays": wire.pack(other), "metrics": MetricRecord({"num-examples": 3})})
    reply = read_reply("a", message(content), expected, wire=asked)
    assert "instead of " + asked in reply.reason
