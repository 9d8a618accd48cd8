"""The best round is chosen by masks, or not at all."""

from __future__ import annotations

import json

import pytest

from dusss_core.phases import Phase
from server.rounds.selection import NOTHING_TO_CHOOSE_BY, Selection
from tests.server.conftest import make_study
from tests.server.unreliable import coordinate


def test_the_best_round_is_that_of_the_highest_dice():
    selection = Selection(Phase.SEGMENT, patience=2)
    for round, dice in enumerate([0.9, 0.2, 0.5, 0.4, 0.3]):  # round 0 is the start, and never chosen
        selection.observe(round, {"alder": (10, {"val.dice": dice, "val.loss": -dice})})
    assert (selection.best_round, selection.exhausted, selection.chooses) == (2, True, True)


def test_a_student_that_is_given_sentences_is_chosen_by_its_figures_with_them():
    selection = Selection(Phase.SEGMENT, patience=2)
    for round, (told, alone) in enumerate([(0, 0), (0.2, 0.9), (0.5, 0.1), (0.4, 0.8)]):
        sites = {"alder": (10, {"val.dice": alone, "val.text_dice": told}), "birch": (10, {"val.dice": alone})}
        selection.observe(round, sites)
    assert selection.best_round == 2


def of_two(alder, birch, **others):
    """Scores of two sites of equal weight; one that was lost tells nothing."""
    told = {name: (10, {"val.dice": dice}) for name, dice in (("alder", alder), ("birch", birch)) if dice is not None}
    return told | others


def test_a_site_that_is_lost_for_a_round_chooses_no_model_and_ends_no_phase():
    """Birch is the harder one: the mean without it is 0.2 above all others."""
    selection = Selection(Phase.SEGMENT, patience=4)
    for round in range(1, 9):
        selection.observe(round, of_two(0.8 + 0.01 * round, None if round == 2 else 0.4 + 0.01 * round))
        assert selection.best_round == round and not selection.exhausted
    assert selection.best_score == pytest.approx(0.68)


def test_models_that_no_site_has_told_of_both_are_not_compared():
    selection = Selection(Phase.SEGMENT, patience=1)
    selection.observe(1, of_two(0.5, None))
    selection.observe(2, of_two(None, 0.9))
    assert selection.best_round == 1 and not selection.exhausted
    selection.observe(3, of_two(0.4, 0.9))
    assert selection.best_round == 1 and selection.exhausted


def test_figures_with_the_sentence_are_not_compared_with_those_without():
    selection = Selection(Phase.SEGMENT, patience=4)
    selection.observe(1, {"alder": (10, {"val.dice": 0.3, "val.text_dice": 0.5}), "birch": (10, {"val.dice": 0.9})})
    selection.observe(2, of_two(None, 0.95))
    assert (selection.best_round, selection.criterion) == (1, "val.text_dice")


def test_what_was_seen_outlives_the_process_and_an_earlier_releases_state_is_gone_on_with():
    first = Selection(Phase.SEGMENT, patience=4)
    first.observe(1, of_two(0.8, 0.4))
    state = json.loads(json.dumps(first.state()))
    again = Selection(Phase.SEGMENT, patience=4)
    again.restore(state)
    again.observe(2, of_two(0.79, None))
    assert (again.best_round, again.waited) == (1, 1)
    older = Selection(Phase.SEGMENT, patience=4)
    older.restore({key: value for key, value in state.items() if key not in ("criterion", "best_sites")})
    older.observe(2, of_two(0.79, 0.4))
    assert (older.best_round, older.waited) == (1, 1)


def test_a_loss_at_chance_chooses_nothing_and_ends_no_phase():
    selection = Selection(Phase.PRETRAIN, patience=1)
    for round, loss in enumerate([2.31, 2.30, 2.33, 2.29, 2.35]):
        selection.observe(round, {"alder": (10, {"val.loss": loss})})
    assert selection.best_round is None and not selection.exhausted and not selection.chooses


def test_without_validation_masks_the_last_round_is_final_and_the_log_says_so(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(
        fake.Pretrainer, "validate", lambda self: {"loss": float(self.step)}
    )  # worse from round to round
    study = make_study(pretrain__rounds=3, pretrain__patience=1)
    _, listener = coordinate(study, tmp_path)
    final = json.loads((tmp_path / "summary.json").read_text())["rounds"]["pretrain"]
    assert (final["trained"], final["final"]) == (3, 3)
    told = [message for message in listener.messages if NOTHING_TO_CHOOSE_BY in message]
    assert told == [f"pretrain: {NOTHING_TO_CHOOSE_BY}"]
    assert NOTHING_TO_CHOOSE_BY in (tmp_path / "log.txt").read_text()


def test_supervision_that_does_nothing_is_told_once(fake, tmp_path, monkeypatch):
    train = fake.Pretrainer.train_round
    constant = {"dsss_p10": 0.40, "dsss_p50": 0.42, "dsss_p90": 0.44}
    monkeypatch.setattr(fake.Pretrainer, "train_round", lambda self, round: {**train(self, round), **constant})
    _, listener = coordinate(make_study(), tmp_path)
    told = [message for message in listener.messages if "D_SSS" in message]
    assert len(told) == 1 and told[0].startswith("warning: pretrain round 1: D_SSS is nearly constant")
