"""One site's claims decide neither a mean, nor which round is best, nor when a phase ends."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from pydantic import ValidationError

from dusss_core.errors import UserError
from dusss_core.phases import Phase
from server.rounds.aggregation import Aggregator, SiteModel
from server.rounds.screening import MOST_ROOM, too_large
from server.rounds.selection import Selection
from server.rounds.shares import capped, warning_of_shares
from server.runs.checkpoints import read_model
from server.runs.lines import ALL_SITES
from server.study.federation import FederationConfig
from tests.server.conftest import finals
from tests.server.rounds.test_reply_checks import changed, lines, on, short, study  # noqa: F401
from tests.server.unreliable import coordinate


def claiming(answer: Message, **counts) -> Message:
    """The introduction of a site that says that it has other counts."""
    content = RecordDict(dict(answer.content.items()))
    content["metrics"] = MetricRecord({**dict(answer.content["metrics"]), **counts})
    return Message(content, metadata=answer.metadata)


def liar(pictures: int, damage=lambda tensors, metrics: None):
    """Birch says that it has so many labelled pictures, and weighs its answer of round 2 with them."""

    def claims(tensors, metrics):
        metrics["num-examples"] = pictures
        damage(tensors, metrics)

    def meddle(site, kind, round, answer):
        if site != "birch":
            return answer
        if kind == "query":
            return claiming(answer, n_labelled=pictures)
        return changed(answer, claims) if kind == "train" and round == 2 else answer

    return meddle


def enlarged(tensors, metrics):
    tensors["body.weight"] *= 714


# The screen.


def test_a_claimed_size_does_not_carry_a_poisoned_update_past_the_screen(short, tmp_path):  # noqa: F811
    sizes = dict.fromkeys(("alder", "birch", "cedar"), 16)
    _, listener = coordinate(study(sizes=sizes), tmp_path / "lied", liar(10**8, enlarged))
    ((site, reason),) = listener.refused
    assert site == "birch" and "times as large as the median of the others'" in reason
    said = "site 'birch' says that it has 100000008 training pictures; it counts with 16, as federation.sizes declares"
    assert said in listener.messages


def test_a_claimed_size_does_not_carry_an_update_past_the_screen_where_no_size_is_declared_either(short, tmp_path):  # noqa: F811
    _, listener = coordinate(study(), tmp_path, liar(10**8, enlarged))
    ((site, reason),) = listener.refused
    assert site == "birch" and "times as large as the median of the others'" in reason


def test_what_a_site_says_alone_widens_its_limit_by_no_more_than_a_fixed_number():
    examples = {"a": 16, "b": 16, "c": 1e8}
    assert too_large({"a": 1, "b": 1, "c": 10 * MOST_ROOM + 1}, examples, 10).keys() == {"c"}
    assert too_large({"a": 1, "b": 1, "c": 10 * MOST_ROOM - 1}, examples, 10) == {}
    # one whose size the study file declares has the room of its pictures
    assert too_large({"a": 1, "b": 1, "c": 10 * MOST_ROOM + 1}, examples, 10, declared={"c"}) == {}


# The mean.


def test_a_declared_size_is_the_most_that_a_site_weighs(short, tmp_path):  # noqa: F811
    sizes = dict.fromkeys(("alder", "birch", "cedar"), 16)
    coordinate(study(sizes=sizes), tmp_path / "lied", liar(10**8))
    coordinate(study(sizes=sizes), tmp_path / "honest")
    assert finals(tmp_path / "lied") == finals(tmp_path / "honest")


def test_declared_sizes_and_a_share_that_nobody_reaches_change_no_bit(short, tmp_path):  # noqa: F811
    coordinate(study(), tmp_path / "plain")
    coordinate(study(sizes={"alder": 16, "birch": 99, "cedar": 16}, max_share=0.9), tmp_path / "declared")
    assert finals(tmp_path / "plain") == finals(tmp_path / "declared")


def test_a_site_whose_size_nobody_declared_takes_no_part(short, tmp_path):  # noqa: F811
    _, listener = coordinate(study(sizes={"alder": 16, "cedar": 16}), tmp_path)
    assert any("site 'birch' is not in federation.sizes" in text for text in listener.messages)
    assert set(json.loads((tmp_path / "summary.json").read_text())["sites"]) == {"alder", "cedar"}


@pytest.mark.parametrize(
    ("weights", "share", "expected"),
    [
        ([1, 1, 1], 0.5, [1 / 3] * 3),
        ([98, 1, 1], 0.5, [0.5, 0.25, 0.25]),
        ([98, 3, 1], 0.5, [0.5, 0.375, 0.125]),
        ([50, 49, 1], 0.4, [0.4, 0.4, 0.2]),
        ([1e8, 16], 0.6, [0.6, 0.4]),
        ([1e8, 16], 0.4, [0.5, 0.5]),  # of two, one half is the least
        ([1e8], 0.4, [1.0]),
        ([5, 0], 0.4, [1.0, 0.0]),
        ([100, 10, 10, 10], 0.26, [0.26, 0.74 / 3, 0.74 / 3, 0.74 / 3]),
    ],
)
def test_a_site_has_no_more_than_its_share(weights, share, expected):
    found = np.array(capped(weights, share))
    np.testing.assert_allclose(found / found.sum(), expected)
    assert capped(weights, None) == weights


@pytest.mark.parametrize("seed", range(20))
def test_shares_that_are_cut_keep_the_order_and_the_limit(seed):
    draw = np.random.default_rng(seed)
    weights = list(np.exp(draw.normal(0, 3, draw.integers(2, 9))))
    share = draw.uniform(1.01 / len(weights), 1)
    found = np.array(capped(weights, share)) / sum(capped(weights, share))
    assert found.max() <= share + 1e-9 and (np.diff(found[np.argsort(weights)]) >= -1e-12).all()
    # those below the limit keep their proportions
    below = found < found.max() - 1e-9
    kept = found[below] / np.array(weights)[below]
    assert np.ptp(kept) <= 1e-9 * kept.max()


def test_the_mean_is_held_to_the_share_also_among_those_that_trained_a_part():
    current = {"head.w": torch.zeros(2), "body.w": torch.zeros(2)}

    def site(value, examples, handed_on=()):
        return SiteModel({name: torch.full((2,), float(value)) for name in current}, examples, handed_on)

    sites = {"a": site(1, 1e8), "b": site(0, 16), "c": site(0, 16), "d": site(0, 16, ("head.",))}
    new = Aggregator(FederationConfig(max_share=0.5)).aggregate(current, sites)
    torch.testing.assert_close(new["body.w"], torch.full((2,), 0.5))
    torch.testing.assert_close(new["head.w"], torch.full((2,), 0.5))
    free = Aggregator(FederationConfig()).aggregate(current, sites)
    assert float(free["head.w"][0]) > 0.99


def test_a_liar_about_its_size_moves_the_model_by_its_share_and_no_more(short, tmp_path):  # noqa: F811
    def pushed(tensors, metrics):
        tensors["body.bias"] = tensors["body.bias"] + 1e-4  # small enough for the screen

    coordinate(study(max_share=0.4, rounds=2), tmp_path / "lied", liar(10**8, pushed))
    coordinate(study(rounds=2), tmp_path / "free", liar(10**8, pushed))
    lied, free = (
        read_model(tmp_path / run / "checkpoints/student.safetensors")["body.bias"] for run in ("lied", "free")
    )
    torch.testing.assert_close(lied, torch.full((4,), 0.4e-4), rtol=1e-3, atol=0)
    torch.testing.assert_close(free, torch.full((4,), 1e-4), rtol=1e-3, atol=0)


def test_a_site_that_is_nearly_the_whole_mean_by_its_own_word_is_named(short, tmp_path):  # noqa: F811
    _, listener = coordinate(study(), tmp_path, liar(10**6))
    (told,) = [text for text in listener.messages if text.startswith("warning: birch says that it has 1000008")]
    assert "federation.sizes" in told and "federation.max_share" in told
    pictures = {"a": 10**6, "b": 16, "c": 16}
    assert warning_of_shares(FederationConfig(), pictures)
    for agreed in ({"max_share": 0.5}, {"sizes": pictures}, {"weighting": "uniform"}, {"strategy": "fedmedian"}):
        assert warning_of_shares(FederationConfig(**agreed), pictures) is None
    assert warning_of_shares(FederationConfig(), {"a": 100, "b": 16, "c": 16}) is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sizes": {"a": -1}}, "below 0"),
        ({"sizes": {"a": 1}, "sites": ["a", "b"]}, "no number for b"),
        ({"max_share": 0.5, "secure_aggregation": True}, "weighting to uniform"),
        ({"sizes": {"a": 1}, "secure_aggregation": True}, "weighting to uniform"),
        ({"max_share": 1.0}, "less than 1"),
    ],
)
def test_shares_that_cannot_be_held_are_refused_in_the_study_file(settings, told):
    with pytest.raises(ValidationError, match=told):
        FederationConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "val", "train"),
    [
        # of 6 validation pictures at each of the others, and 16 for training
        ({"sizes": dict.fromkeys(("alder", "birch", "cedar"), 16)}, 16 / 28, 1 / 3),
        ({"max_share": 0.4}, 0.4, 0.4),
        ({}, 1.0, 1.0),
    ],
)
def test_means_that_are_told_weigh_a_liar_as_the_mean_of_updates_does(short, tmp_path, settings, val, train):  # noqa: F811
    def meddle(site, kind, round, answer):
        if kind == "query":
            return claiming(answer, n_labelled=10**8, n_val=10**8) if site == "birch" else answer
        if kind != "train":
            return answer
        lied = {"val.x": 1.0, "train.x": 1.0, "num-examples": 10**8} if site == "birch" else {"val.x": 0, "train.x": 0}
        return changed(answer, lambda tensors, metrics: metrics.update(lied))

    coordinate(study(rounds=1, **settings), tmp_path, meddle)
    found = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (told,) = [line for line in found if line["site"] == ALL_SITES and line["round"] == 1]
    assert told["val"]["x"] == pytest.approx(val, abs=1e-6) and told["train"]["x"] == pytest.approx(train, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "weighted"),
    # of 6 test pictures at each of the others
    [({"sizes": dict.fromkeys(("alder", "birch", "cedar"), 16)}, 16 / 28), ({"max_share": 0.4}, 0.4), ({}, 1.0)],
)
def test_the_weighted_mean_of_the_test_holds_a_liar_to_what_it_weighs_in_the_mean_of_updates(
    short,  # noqa: F811
    tmp_path,
    settings,
    weighted,
):
    def meddle(site, kind, round, answer):
        if kind == "query":
            return claiming(answer, n_test=10**8) if site == "birch" else answer
        if kind != "evaluate" or "test.dice" not in answer.content["metrics"]:
            return answer
        return claiming(answer, **({"test.dice": 1.0, "test.n": 10**8} if site == "birch" else {"test.dice": 0.0}))

    coordinate(study(rounds=1, **settings), tmp_path, meddle)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["sites"]["birch"]["dice"] == 1.0
    assert found["global"]["dice_weighted"] == pytest.approx(weighted, abs=1e-6)


def test_a_site_worked_no_longer_on_a_round_than_the_round_took(short, tmp_path):  # noqa: F811
    def slow(tensors, metrics):
        metrics["seconds"] = 1e12

    def meddle(site, kind, round, answer):
        return changed(answer, slow) if kind == "train" and site == "birch" else answer

    coordinate(study(rounds=2), tmp_path, meddle)
    told = json.loads((tmp_path / "summary.json").read_text())["seconds"]
    assert told["training_at_sites"] <= 3 * told["total"]
    rows = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    whole = {row["round"]: row["seconds"] for row in rows if row["site"] == ALL_SITES and "seconds" in row}
    assert all(row["seconds"] <= whole[row["round"]] for row in rows if "seconds" in row and row["round"] in whole)


# The best round.


def played(rounds, **how):
    selection = Selection(Phase.SEGMENT, patience=2, **how)
    for number, scores in enumerate(rounds):
        told = {f"site {i}": (weight, {"val.dice": score}) for i, (weight, score) in enumerate(scores)}
        selection.observe(number, told)
        if selection.exhausted:
            break
    return selection.best_round, number


def with_liar(weight, lie):
    """Six rounds in which two honest sites get better, and a third that lies about the model of round 2."""
    honest = [(10, 0.1 * round) for round in range(7)]
    return [[site, site, (weight, lie if round == 2 else site[1])] for round, site in enumerate(honest)]


def test_a_perfect_score_of_one_site_ends_no_phase_and_chooses_no_round_by_the_median():
    assert played(with_liar(10, 1.0), by_median=True) == (6, 6)
    assert played(with_liar(10**8, 1.0), by_median=True) == (6, 6)
    # by the mean over pictures it does
    assert played(with_liar(10**8, 1.0))[0] == 2


def test_a_claimed_number_of_validation_pictures_counts_no_more_than_its_share():
    assert played(with_liar(10**8, 0.45), max_share=0.4) == (6, 6)
    assert played(with_liar(10**8, 0.45)) == (2, 4)


def test_a_study_by_the_median_goes_on_where_one_site_lies(short, tmp_path):  # noqa: F811
    def perfect(tensors, metrics):
        metrics["val.dice"] = 1.0

    def meddle(site, kind, round, answer):
        return changed(answer, perfect) if (site, kind, round) == ("birch", "train", 3) else answer

    for select in ("median", "best"):
        tiny = study(rounds=6, select=select)
        tiny = tiny.model_copy(update={"segment": tiny.segment.model_copy(update={"patience": 2})})
        coordinate(tiny, tmp_path / select, meddle)
    of = {s: json.loads((tmp_path / s / "summary.json").read_text())["rounds"]["segment"] for s in ("median", "best")}
    assert (of["median"]["trained"], of["median"]["final"]) == (6, 6)
    assert of["best"]["trained"] < 6 and of["best"]["final"] == 2


@pytest.mark.parametrize("select", ["best", "median"])
def test_a_score_out_of_its_range_neither_ends_a_phase_nor_chooses_a_round(short, tmp_path, select):  # noqa: F811
    def five(tensors, metrics):
        metrics["val.dice"] = 5.0

    tiny = study(rounds=6, select=select)
    tiny = tiny.model_copy(update={"segment": tiny.segment.model_copy(update={"patience": 2})})
    _, listener = coordinate(tiny, tmp_path, on("birch", 3, lambda answer: changed(answer, five)))
    assert listener.refused == [("birch", "'val.dice' is 5, not between 0 and 1")]
    rounds = json.loads((tmp_path / "summary.json").read_text())["rounds"]["segment"]
    assert (rounds["trained"], rounds["final"]) == (6, 6)


# What is said where it breaks.


def test_where_training_diverges_after_a_round_the_message_says_whose_part_the_mean_held(short, tmp_path):  # noqa: F811
    def diverged(site, kind, round, answer):
        if kind != "train" or round != 3:
            return answer
        from flwr.app import ConfigRecord

        told = {"declined": "the loss is not finite", "abstains": False, "diverged": True}
        return Message(RecordDict({"config": ConfigRecord(told)}), metadata=answer.metadata)

    with pytest.raises(UserError) as failed:
        coordinate(study(), tmp_path, diverged)
    assert "mean of round 2: alder (33.3 %, update of size " in failed.value.problem
    assert "birch (33.3 %" in failed.value.problem and "federation.sites" in failed.value.remedy
    assert lines(tmp_path, 2)["alder"]["accepted"]
