"""The best round is chosen by masks, or not at all."""

from __future__ import annotations

import json

from dusss_core.phases import Phase
from server.rounds.selection import NOTHING_TO_CHOOSE_BY, Selection
from tests.server.conftest import make_study
from tests.server.unreliable import coordinate


def test_the_best_round_is_that_of_the_highest_dice():
    selection = Selection(Phase.SEGMENT, patience=2)
    for round, dice in enumerate([0.9, 0.2, 0.5, 0.4, 0.3]):  # round 0 is the start, and never chosen
        selection.observe(round, [(10, {"val.dice": dice, "val.loss": -dice})])
    assert (selection.best_round, selection.exhausted, selection.chooses) == (2, True, True)


def test_a_student_that_is_given_sentences_is_chosen_by_its_figures_with_them():
    selection = Selection(Phase.SEGMENT, patience=2)
    for round, (told, alone) in enumerate([(0, 0), (0.2, 0.9), (0.5, 0.1), (0.4, 0.8)]):
        sites = [(10, {"val.dice": alone, "val.text_dice": told}), (10, {"val.dice": alone})]
        selection.observe(round, sites)
    assert selection.best_round == 2


def test_a_loss_at_chance_chooses_nothing_and_ends_no_phase():
    selection = Selection(Phase.PRETRAIN, patience=1)
    for round, loss in enumerate([2.31, 2.30, 2.33, 2.29, 2.35]):
        selection.observe(round, [(10, {"val.loss": loss})])
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
