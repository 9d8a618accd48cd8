"""Rounds within a limit of time: continued calls train the same, the best round is kept, the time is kept to."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import train
from benchmarks.gpu.made_up import made_up_bank, made_up_split, with_made_up_text
from benchmarks.gpu.train import Clock, Plan, Training
from dusss_core.config import TrainingConfig
from dusss_core.files import digest_of_tensors

CPU = torch.device("cpu")
ROUNDS = {"pretrain": 3, "segment": 3}


@pytest.fixture
def config(tmp_path) -> TrainingConfig:
    phase = {"batch": 4, "optimizer": {"lr": 3e-3}}
    small = TrainingConfig(
        image={"size": 32},
        vlm={"image_encoder": "mobilenetv3_small_050", "dim": 16, "decoder_width": 8, "text": {"views": 1}},
        student={"width": 4},
        pretrain=phase,
        segment=phase,
    )
    return with_made_up_text(small, tmp_path / "encoder")


def _call(config, out, plan, record, earlier=None):
    """One call, as run.py makes it."""
    out.mkdir()
    splits = {"train": made_up_split(12, 32, 1), "val": made_up_split(6, 32, 1, seed=2)}
    text = made_up_bank(config, splits["train"], CPU)
    config = config.model_copy(deep=True)
    training = Training(config, splits, text, CPU, Clock(60), plan, record, lambda: None, out, lambda line: None)
    if earlier is not None:
        training.resume(earlier)
    return training, training.run()


def test_calls_that_stop_anywhere_train_what_one_call_trains(config, tmp_path):
    whole, over = _call(config, tmp_path / "whole", Plan(rounds=ROUNDS), {})
    assert over and whole.rounds["segment"].done == 3
    record, earlier = {}, None
    for call in range(1, 4):  # after rounds 2 of 3, 1 of 3, and to the end
        plan = Plan(3, call, rounds=ROUNDS, rounds_per_call=2)
        training, over = _call(config, tmp_path / f"call{call}", plan, record, earlier)
        assert over == (call == 3)
        record, earlier = json.loads(json.dumps(record)), tmp_path / f"call{call}"
    for name in ("vlm", "student"):
        assert digest_of_tensors(training.state[name]) == digest_of_tensors(whole.state[name])
    own, other = ([line["loss"] for line in t.rounds["segment"].lines] for t in (training, whole))
    assert own == other


@pytest.mark.parametrize(("dice", "best"), [((0.9, 0.5, 0.4), 1), ((0.5, 0.9, 0.4), 2), ((0.5, 0.4, 0.9), 3)])
def test_the_best_round_by_validation_is_what_is_kept(dice, best, config, tmp_path, monkeypatch):
    """Also where a call ends after it, and later rounds are worse."""
    figures = iter([0.1, 0.3, 0.2, *dice])
    for kind in ("Pretrainer", "Segmenter"):
        monkeypatch.setattr(f"dusss_core.training.{kind}.validate", lambda self: {"dice": next(figures)})
    shared = []
    true = Training._round

    def remembered(self, trainer, model, round):
        found = true(self, trainer, model, round)
        shared.append(found[0])
        return found

    monkeypatch.setattr(Training, "_round", remembered)
    record, earlier = {}, None
    for call in (1, 2):
        plan = Plan(2, call, rounds=ROUNDS, rounds_per_call=5)
        training, _ = _call(config, tmp_path / f"call{call}", plan, record, earlier)
        earlier = tmp_path / f"call{call}"
    assert training.rounds["segment"].best == best
    for name, model in (("vlm", shared[1]), ("student", shared[2 + best])):
        assert digest_of_tensors(training.state[name]) == digest_of_tensors(model)


def test_a_method_without_text_has_no_first_step(config, tmp_path):
    config.method = config.method.model_copy(update={"text_mask": False})
    training, over = _call(config, tmp_path / "out", Plan(rounds=ROUNDS), {})
    assert over and set(training.rounds) == {"segment"} and set(training.state) == {"student"}


def test_what_a_round_is_made_of_is_told_without_the_slow_first_one():
    line = {"load_s": 0.5, "train_s": 7.0, "share_s": 0.5, "validate_s": 2.0, "seconds": 10.0, "gpu_percent": 90.0}
    slow = {**line, "load_s": 50.5, "seconds": 60.0}
    found = train.Rounds(4, lines=[slow, line, line]).shares()
    assert found == {"training": 0.7, "validation": 0.2, "bookkeeping": 0.1, "seconds": 10.0, "gpu_percent": 90.0}


# ---- the time ----


class _Timed(Training):
    """Its rounds take the time that they are given, on a clock of its own."""

    def __init__(self, seconds: dict[str, float], plan: Plan, minutes: float, rounds=(30, 80)):
        self.now = 100.0
        phases = [SimpleNamespace(rounds=n) for n in rounds]
        config = SimpleNamespace(pretrain=phases[0], segment=phases[1], method=SimpleNamespace(text_mask=True))
        clock = Clock(minutes, began=100.0)
        super().__init__(config, {}, None, CPU, clock, plan, {}, lambda: None, None, lambda line: None)
        self.seconds = seconds

    def _trainer(self, phase):
        self.phase = phase
        return SimpleNamespace(shared=dict, private=dict, load_private=lambda tensors: None, settings=SimpleNamespace())

    def _round(self, trainer, shared, round):
        seconds = self.seconds[self.phase] * (4 if round == 1 else 1)  # the first is slow on a GPU
        self.now += seconds
        return {}, {"loss": 1.0, "val_dice": 0.5, "seconds": seconds, "train_s": 1.0}

    def _write(self):
        self._saved = self.clock.passed


@pytest.mark.parametrize("pretrain_s", [4, 25])
@pytest.mark.parametrize("segment_s", [1, 8, 40])
@pytest.mark.parametrize("calls", [1, 3])
def test_calls_end_in_time_and_the_rounds_are_planned_for_all_of_them(pretrain_s, segment_s, calls, monkeypatch):
    plan = Plan(calls, later_minutes=9)
    call = _Timed({"pretrain": pretrain_s, "segment": segment_s}, plan, minutes=9)
    monkeypatch.setattr(train.time, "time", lambda: call.now)
    for number in range(1, calls + 1):
        plan.call = number
        call.clock = Clock(9, began=call.now)
        over = call.run()
        assert call.clock.left >= plan.kept_s, number
        if over and number < calls:
            break
    assert over
    done = {phase: rounds.done for phase, rounds in call.rounds.items()}
    assert 1 <= done["pretrain"] <= 30 and 1 <= done["segment"] <= 80
    # the schedule comes to its end: no more than two rounds are missing of it
    assert call.rounds["segment"].planned - done["segment"] <= 2
    if calls == 1 and segment_s == 8:  # and the time is used
        assert call.clock.left < plan.kept_s + 3 * segment_s
