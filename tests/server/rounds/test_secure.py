"""Secure aggregation over the whole line: the coordinator gets sums, and they are those of the sites' updates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto

import client.secure.part
import client.work.training
from dusss_core.errors import UserError
from dusss_core.phases import Phase
from feddusss import wire
from feddusss.secagg.fixedpoint import FRACTION_BITS
from server.rounds import roster
from server.rounds.coordinator import RoundFailed
from server.runs.checkpoints import read_model
from server.simulation import inprocess
from server.simulation.simulate import simulate
from server.study.config import StudyConfig
from tests.server.conftest import HOSPITALS, finals, make_study
from tests.server.unreliable import coordinate, error

FOUR = [
    {**HOSPITALS[0], "name": name, "train": train}
    for name, train in (("alder", 16), ("birch", 8), ("cedar", 24), ("dogwood", 16))
]
NAMES = [hospital["name"] for hospital in FOUR]
ONE_PHASE = {"method": {"preset": "mean_teacher"}}


@pytest.fixture(autouse=True)
def short(fake, monkeypatch):
    """Nobody waits long in these tests."""
    monkeypatch.setattr("server.rounds.exchange.POLL_S", 0.01)
    for name in ("POLL_S", "_LOOK_S", "_JOIN_S", "_AGAIN_S"):
        monkeypatch.setattr(roster, name, 0.01)


def study(hospitals=FOUR, secure=True, both_phases=False, rounds=1, **federation) -> StudyConfig:
    federation = {"round_timeout_s": 0.05, "start_timeout_s": 0.2, "secure_aggregation": secure, **federation}
    if not secure:
        federation["max_norm_ratio"] = None
    phases = {} if both_phases else ONE_PHASE
    return make_study(hospitals, segment__rounds=rounds, federation=federation, **phases)


def lines(out, round):
    """(site -> its line) of a round of the segment phase."""
    found = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["site"]: line for line in found if line["round"] == round and line["phase"] == "segment"}


def student(folder):
    return read_model(folder / "checkpoints/student.safetensors")


def assert_close(secure, plain, atol=2e-6):
    """Equal to the precision of float32 sums. Counters are left out: the secure sum gives their mean."""
    assert secure.keys() == plain.keys()
    for name, tensor in plain.items():
        assert secure[name].dtype == tensor.dtype and secure[name].shape == tensor.shape
        if tensor.is_floating_point():
            torch.testing.assert_close(secure[name], tensor, rtol=1e-6, atol=atol)


def on(kind, do, sites=NAMES, round=None, times=10**9):
    """A meddler that does `do(answer)` to the answers to one kind of message, the first `times` times."""
    done = []

    def meddle(site, what, number, answer):
        if what != kind or site not in sites or round not in (None, number) or len(done) >= times:
            return answer
        done.append(site)
        return do(answer)

    return meddle


def lost(answer):
    return None


# Sums are right.


@pytest.mark.parametrize(
    "federation",
    [
        {},
        {"strategy": "fedprox"},
        {"strategy": "fedavgm", "momentum": 0.5},
        {"strategy": "fedadam", "server_lr": 0.1},
        {"strategy": "fedyogi", "server_lr": 0.1},
        {"weighting": "uniform"},
    ],
    ids=lambda federation: "-".join(map(str, federation.values())) or "fedavg",
)
def test_a_study_gives_the_models_that_it_gives_without_masks(tmp_path, quiet, federation):
    for name, secure in (("secure", True), ("plain", False)):
        simulate(study(secure=secure, rounds=2, **federation), tmp_path / name, reporter=quiet)
    # Adam divides by the root of a second moment, and so makes more of a difference in the last bit
    atol = 1e-4 if "server_lr" in federation else 2e-6
    assert_close(student(tmp_path / "secure"), student(tmp_path / "plain"), atol)


@pytest.fixture
def updates(monkeypatch):
    """The encoded updates of every site, before they are masked."""
    seen: list[np.ndarray] = []
    encoded = client.secure.part._encoded
    monkeypatch.setattr(client.secure.part, "_encoded", lambda *args: seen.append(encoded(*args)) or seen[-1].copy())
    return seen


def test_the_mean_is_exact_to_the_stated_precision(tmp_path, quiet, updates):
    simulate(study(), tmp_path, reporter=quiet)
    total = np.sum(updates, axis=0, dtype=np.uint64).view(np.int64)
    from dusss_core.training import initial_shared

    start, before, after = 0, initial_shared(study().training(), Phase.SEGMENT), student(tmp_path)
    weight = sum(hospital["train"] for hospital in FOUR)
    for name in sorted(before):
        part = total[start : start + before[name].numel()].reshape(tuple(before[name].shape))
        start += before[name].numel()
        if before[name].is_floating_point():
            expected = before[name].double() + torch.from_numpy(np.asarray(part / (weight * 2.0**FRACTION_BITS)))
        else:
            expected = before[name] + torch.from_numpy(np.asarray(np.rint(part / weight)))
        assert torch.equal(after[name], expected.to(after[name].dtype)), name
    assert start == len(total)


def test_normalisation_layers_that_stay_at_the_sites_are_not_in_the_sum(tmp_path, quiet):
    for name, secure in (("secure", True), ("plain", False)):
        values = {"local_norm": True, **ONE_PHASE}
        federation = {"secure_aggregation": True} if secure else {}
        simulate(make_study(FOUR, federation=federation, **values), tmp_path / name, reporter=quiet)
    assert not [name for name in student(tmp_path / "secure") if "norm" in name]
    assert_close(student(tmp_path / "secure"), student(tmp_path / "plain"))


def test_models_go_down_rounded_where_the_study_says_so_and_sums_are_of_the_true_updates(tmp_path, quiet):
    simulate(study(wire="bfloat16"), tmp_path / "bf16", reporter=quiet)
    simulate(study(), tmp_path / "float32", reporter=quiet)
    down = [lines(tmp_path / name, 1)["alder"]["bytes_down"] for name in ("bf16", "float32")]
    assert down[0] < down[1]
    rounded, whole = student(tmp_path / "bf16"), student(tmp_path / "float32")
    # the first model is rounded on its way down, and what it is rounded by is not in the update
    assert_close(rounded, whole, atol=4 * 2**-9)
    assert not torch.equal(rounded["body.weight"], whole["body.weight"])


def test_a_run_that_is_repeated_gives_the_same_models(tmp_path, quiet):
    for name in ("one", "two"):
        simulate(study(both_phases=True), tmp_path / name, reporter=quiet)
    assert finals(tmp_path / "one") == finals(tmp_path / "two")


# What leaves.


@pytest.fixture
def sent(monkeypatch):
    """Every message of the runs that follow, both ways."""
    seen: list[tuple[Message, Message]] = []

    class Tapped(inprocess.InProcessGrid):
        def _work(self, message):
            reply = super()._work(message)
            seen.append((message, reply))
            return reply

    monkeypatch.setattr(inprocess, "InProcessGrid", Tapped)
    return seen


def test_no_sites_update_is_in_what_the_coordinator_receives(tmp_path, quiet, sent, updates, monkeypatch):
    trained: list[dict[str, torch.Tensor]] = []
    train = client.work.training.Round.train

    def watched(round):
        update, figures = train(round)
        trained.append(update)
        return update, figures

    monkeypatch.setattr(client.work.training.Round, "train", watched)
    simulate(study(), tmp_path, reporter=quiet)
    assert len(trained) == len(updates) == 4
    received = [message_to_proto(reply).SerializeToString() for _, reply in sent]
    for model in trained:
        weight = model["body.weight"].numpy().tobytes()
        assert not any(weight in answer for answer in received)
    for update in updates:
        assert not any(update.tobytes()[:64] in answer for answer in received)
    answers = [reply for message, reply in sent if message.metadata.message_type == "train"]
    for answer in answers:
        tensors = wire.unpack(answer.content.array_records["arrays"])
        assert {tensor.dtype for tensor in tensors.values()} == {torch.int64}
        # an update is far below 2^62, and a mask is not
        assert max(int(tensor.double().abs().max()) for tensor in tensors.values()) > 2**61


def test_bytes_are_eight_per_number_up_and_some_thousand_besides(tmp_path, quiet, sent):
    simulate(study(), tmp_path, reporter=quiet)
    line, plain = lines(tmp_path, 1)["alder"], tmp_path / "plain"
    simulate(study(secure=False), plain, reporter=quiet)
    numbers = sum(tensor.numel() for tensor in student(tmp_path).values())
    header = lines(plain, 1)["alder"]["bytes_up"] - 4 * numbers
    assert 0 < line["bytes_up"] - 8 * numbers - header < 6000
    assert 0 < line["bytes_down"] - lines(plain, 1)["alder"]["bytes_down"] < 12_000


def test_small_steps_are_one_record_each_and_a_round_is_five_exchanges(tmp_path, quiet, sent):
    simulate(study(), tmp_path, reporter=quiet)
    steps = [str(m.content["secure"]["step"]) for m, _ in sent if "secure" in m.content]
    assert steps == [step for step in ("keys", "deal", "train", "vote", "reveal") for _ in FOUR]
    for message, reply in sent:
        if "secure" in message.content and message.metadata.message_type != "train":
            assert set(reply.content) == {"secure"} and set(reply.content["secure"]) == {"body"}


# Sites drop out.


@pytest.mark.parametrize("do", [lost, error], ids=["late", "gone"])
def test_a_site_that_is_lost_while_it_trains_leaves_the_sum_of_the_others(tmp_path, do):
    coordinate(study(secure_threshold=3), tmp_path / "secure", on("train", do, ["birch"], round=1))
    coordinate(study(secure=False), tmp_path / "plain", on("train", do, ["birch"], round=1))
    assert {site: line["accepted"] for site, line in lines(tmp_path / "secure", 1).items() if site != "*"} == {
        "alder": True,
        "birch": False,
        "cedar": True,
        "dogwood": True,
    }
    assert_close(student(tmp_path / "secure"), student(tmp_path / "plain"))


@pytest.mark.parametrize("step", ["vote", "reveal"])
def test_a_site_that_is_lost_after_its_update_stays_in_the_sum(tmp_path, quiet, step):
    coordinate(study(secure_threshold=3), tmp_path / "lossy", on(step, lost, ["birch"]))
    simulate(study(secure_threshold=3), tmp_path / "whole", reporter=quiet)
    assert finals(tmp_path / "lossy") == finals(tmp_path / "whole")


@pytest.mark.parametrize("step", ["keys", "deal"])
def test_a_site_that_is_lost_before_anything_is_masked_is_done_without(tmp_path, step):
    coordinate(study(secure_threshold=3), tmp_path / "secure", on(step, lost, ["birch"]))
    coordinate(study(secure=False), tmp_path / "plain", on("train", lost, ["birch"]))
    assert lines(tmp_path / "secure", 1)["birch"]["accepted"] is False
    assert_close(student(tmp_path / "secure"), student(tmp_path / "plain"))


@pytest.mark.parametrize("step", ["keys", "deal", "train"])
def test_an_attempt_that_fails_is_repeated_with_fresh_keys_and_gives_the_same_sum(tmp_path, quiet, step):
    _, listener = coordinate(study(secure_threshold=4), tmp_path / "lossy", on(step, lost, ["birch"], times=1))
    simulate(study(secure_threshold=4), tmp_path / "whole", reporter=quiet)
    assert any("no sum; asking again, with fresh keys" in text for text in listener.messages)
    assert finals(tmp_path / "lossy") == finals(tmp_path / "whole")
    assert all(line["accepted"] for site, line in lines(tmp_path / "lossy", 1).items() if site != "*")


def test_below_the_threshold_the_round_fails_and_the_run_can_go_on_later(tmp_path, quiet):
    secure = study(secure_threshold=4, retries=1, rounds=2)
    with pytest.raises(RoundFailed, match=r"0 of 4 sites could be used, 4 needed.*--resume[^>]*birch: no answer"):
        coordinate(secure, tmp_path / "broken", on("train", lost, ["birch"], round=2))
    coordinate(secure, tmp_path / "broken")
    simulate(secure, tmp_path / "whole", reporter=quiet)
    assert finals(tmp_path / "broken") == finals(tmp_path / "whole")


@pytest.mark.parametrize("threshold", [None, 3])
def test_sites_that_cannot_take_part_and_leave_too_few_for_a_sum_end_the_run_at_once_by_name(tmp_path, threshold):
    """As a site whose privacy budget is spent, which tells so when it is asked to train."""

    def decline(answer):
        answer.content = RecordDict({"config": ConfigRecord({"declined": "its budget is spent", "abstains": True})})
        return answer

    three = study(FOUR[:3], secure_threshold=threshold, rounds=2, start_timeout_s=600.0, round_timeout_s=60.0)
    with pytest.raises(UserError, match=r"2 of 3 sites can take part, 3 needed[^>]*birch: its budget is spent"):
        coordinate(three, tmp_path, on("train", decline, ["birch"], round=2))


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a kill."""


@pytest.mark.parametrize("step", ["keys", "deal", "train"])
def test_killed_before_the_vote_and_resumed_the_models_are_the_same(tmp_path, quiet, step):
    def kill(answer):
        raise Killed

    with pytest.raises(Killed):
        coordinate(study(rounds=2), tmp_path / "killed", on(step, kill, ["cedar"], round=2))
    coordinate(study(rounds=2), tmp_path / "killed")
    simulate(study(rounds=2), tmp_path / "whole", reporter=quiet)
    assert finals(tmp_path / "killed") == finals(tmp_path / "whole")


@pytest.mark.parametrize("step", ["vote", "reveal"])
def test_killed_after_the_vote_no_part_is_given_twice_and_the_round_leaves_the_model_as_it_was(tmp_path, step):
    def kill(answer):
        raise Killed

    with pytest.raises(Killed):
        coordinate(study(rounds=3), tmp_path, on(step, kill, ["dogwood"], round=2))
    _, listener = coordinate(study(rounds=3), tmp_path)
    assert any("segment round 2: the sites have given their parts" in text for text in listener.messages)
    first, second, third = (read_model(tmp_path / f"checkpoints/segment-000{n}.safetensors") for n in (1, 2, 3))
    first, second, third = ({k: v for k, v in m.items() if "/" not in k} for m in (first, second, third))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(second["body.weight"], third["body.weight"])
    assert lines(tmp_path, 2)["alder"]["accepted"] is False


def test_a_simulation_that_is_begun_anew_has_sites_that_have_given_nothing(tmp_path, quiet):
    simulate(study(), tmp_path, reporter=quiet)
    first = finals(tmp_path)
    simulate(study(), tmp_path, reporter=quiet, force=True)
    assert finals(tmp_path) == first


# Wrong answers.


def altered(answer, change):
    tensors = dict(wire.unpack(answer.content["arrays"]))
    change(tensors)
    return Message(
        RecordDict({"arrays": wire.pack(tensors), "metrics": answer.content["metrics"]}), metadata=answer.metadata
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop("scale"), "tensor 'scale' is missing"),
        (lambda tensors: tensors.update({"scale": torch.tensor(1.0)}), "float32 scalar instead of int64 scalar"),
        (lambda tensors: tensors.update({"scale": torch.zeros(2, dtype=torch.int64)}), "int64 2 instead of int64"),
    ],
)
def test_a_masked_update_of_another_form_is_refused_by_name(tmp_path, change, reason):
    meddle = on("train", lambda answer: altered(answer, change), ["birch"], round=1)
    _, listener = coordinate(study(secure_threshold=3), tmp_path, meddle)
    assert [(site, text) for site, text in listener.refused if reason in text] == [("birch", listener.refused[0][1])]
    assert lines(tmp_path, 1)["cedar"]["accepted"] and not lines(tmp_path, 1)["birch"]["accepted"]


def test_a_masked_update_that_was_changed_on_the_way_gives_no_model(tmp_path):
    def garble(tensors):
        for tensor in tensors.values():
            tensor += 2**61 + 2**62

    meddle = on("train", lambda answer: altered(answer, garble), ["birch"], round=1)
    _, listener = coordinate(study(), tmp_path, meddle)
    assert any("masks did not cancel" in text for text in listener.messages)
    assert any("the model stays as it was" in text for text in listener.messages)


@pytest.mark.parametrize(
    ("step", "body"), [("keys", b"{}"), ("deal", b"{}"), ("vote", None), ("reveal", "text"), ("reveal", b"{}")]
)
def test_an_answer_to_a_small_step_that_is_none_is_refused_by_name(tmp_path, step, body):
    def broken(answer):
        record = ConfigRecord({} if body is None else {"body": body})
        return Message(RecordDict({"secure": record}), metadata=answer.metadata)

    _, listener = coordinate(study(secure_threshold=3), tmp_path, on(step, broken, ["birch"], round=1))
    assert {site for site, _ in listener.refused} == {"birch"}
    assert listener.refused[0][1].startswith(f"{step}: birch sent")
    assert lines(tmp_path, 1)["cedar"]["accepted"]


def test_a_share_that_was_changed_is_refused_by_name_and_the_sum_is_had(tmp_path, quiet):
    def broken(answer):
        body = json.loads(answer.content["secure"]["body"])
        body["shares"]["cedar"] = "00" * 32
        return Message(
            RecordDict({"secure": ConfigRecord({"body": json.dumps(body).encode()})}), metadata=answer.metadata
        )

    _, listener = coordinate(study(secure_threshold=3), tmp_path / "lied", on("reveal", broken, ["birch"]))
    said = "reveal: 'birch' sent a share that 'cedar' did not deal to it"
    assert listener.refused == [("birch", said)]
    simulate(study(secure_threshold=3), tmp_path / "whole", reporter=quiet)
    assert finals(tmp_path / "lied") == finals(tmp_path / "whole")
