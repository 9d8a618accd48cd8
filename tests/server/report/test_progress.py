"""The live display: what it shows, when it is used, and that it gives the terminal back."""

from __future__ import annotations

import io
import logging
import sys
import time

import pytest
from rich.console import Console

from feddusss.timeleft import Rounds, Seldom
from server.report.progress import RichReporter, make_reporter
from server.runs.eventlog import EventLog, Tail, replay
from server.runs.events import PlainReporter

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def terminal(**options) -> Console:
    return Console(force_terminal=True, file=io.StringIO(), width=100, height=30, color_system=None, **options)


def drawn(reporter: RichReporter) -> str:
    """The display as it is now, as plain text."""
    console = Console(file=io.StringIO(), width=100, height=30)
    console.print(reporter.renderable())
    return console.file.getvalue()


@pytest.fixture
def reporter():
    reporter = RichReporter(terminal())
    yield reporter
    reporter.close()


def begin(reporter: RichReporter, rounds: int = 4, start_round: int = 1) -> None:
    reporter.on_study("demo", ["alder", "birch"], {"pretrain": rounds, "segment": rounds})
    reporter.on_phase("pretrain", rounds, start_round)


def run_round(reporter: RichReporter, phase: str, round: int, rounds: int) -> None:
    reporter.on_round_start(phase, round, rounds, ["alder", "birch"])
    for site in ("alder", "birch"):
        reporter.on_site_start(site)
        reporter.on_site_step(site, 1, 2, 0.5)
        reporter.on_site_done(site, {"train.loss": 0.4, "val.dice": 0.61})
    reporter.on_round_end(phase, round, {"val.dice": 0.61, "seconds": 1.0}, round)


def test_a_terminal_gets_the_display_and_a_pipe_gets_plain_lines():
    assert isinstance(make_reporter(terminal()), RichReporter)
    pipe = io.StringIO()
    plain = make_reporter(Console(file=pipe))
    assert isinstance(plain, PlainReporter)
    plain.on_message("hello")
    assert "hello" in pipe.getvalue()


def test_it_shows_phase_round_step_loss_dice_and_status(reporter):
    begin(reporter)
    run_round(reporter, "pretrain", 1, 4)
    reporter.on_round_start("pretrain", 2, 4, ["alder", "birch"])
    reporter.on_site_step("alder", 3, 8, 0.25)
    heading, alder, birch = [line for line in drawn(reporter).splitlines() if line.strip()]
    assert "pretrain" in heading and "round 2 of 4" in heading and "best: round 1" in heading
    assert "3/8" in alder and "loss 0.2500" in alder and "Dice 0.6100" in alder and "trains" in alder
    assert "waits" in birch and "loss" not in birch


def test_time_left_comes_from_finished_rounds(monkeypatch, reporter):
    now = [0.0]
    monkeypatch.setattr(reporter, "_clock", lambda: now[0])
    begin(reporter)
    assert reporter.seconds_left() is None
    for round, seconds in ((1, 50.0), (2, 10.0)):
        reporter.on_round_start("pretrain", round, 4, ["alder"])
        now[0] += seconds
        reporter.on_round_end("pretrain", round, {}, None)
    assert reporter.seconds_left() == pytest.approx(20.0)  # the first round filled caches and does not count
    reporter.on_round_start("pretrain", 3, 4, ["alder"])
    now[0] += 4
    assert reporter.seconds_left() == pytest.approx(16.0)
    assert "about 16 s left in this phase" in drawn(reporter)
    reporter.on_phase("segment", 4, 1)
    assert reporter.seconds_left() is None


def test_it_says_how_many_of_the_sites_that_were_asked_have_answered(reporter):
    reporter.on_study("demo", ["alder", "birch", "cedar"], {"segment": 4})
    reporter.on_phase("segment", 4, 1)
    reporter.on_round_start("segment", 1, 4, ["alder", "birch"])
    assert "0 of 2 answered" in drawn(reporter)
    reporter.on_site_done("alder", {})
    assert "1 of 2 answered" in drawn(reporter)
    reporter.on_site_refused("birch", "lost")
    assert "2 of 2 answered" in drawn(reporter)


def test_after_the_rounds_it_says_that_models_are_measured_and_gives_no_time_left(reporter):
    reporter.on_study("demo", ["alder", "birch"], {"segment": 1})
    reporter.on_phase("segment", 1, 1)
    run_round(reporter, "segment", 1, 1)
    reporter.on_site_start("alder")
    assert "the last round's model is validated" in drawn(reporter) and "left" not in drawn(reporter)
    assert "2/2" not in next(line for line in drawn(reporter).splitlines() if "alder" in line)
    reporter.on_phase_end("segment", 1, "all rounds done")
    reporter.on_site_start("alder")
    assert "the final model is tested" in drawn(reporter)


def test_time_left_of_a_run_that_is_told_later_is_that_of_its_own_clock(reporter, monkeypatch, tmp_path):
    """Who looks on from a second window hears of all rounds at once."""
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    log = EventLog(tmp_path)
    log.begin(1)
    log.on_study("demo", ["alder"], {"segment": 4})
    log.on_phase("segment", 4, 1)
    for round in (1, 2):
        log.on_round_start("segment", round, 4, ["alder"])
        now[0] += 30
        log.on_round_end("segment", round, {}, None)
    log.on_round_start("segment", 3, 4, ["alder"])
    now[0] += 10
    monkeypatch.setattr(reporter, "_clock", lambda: now[0])
    for event in Tail(tmp_path).read():
        replay(event, reporter)
    assert reporter.seconds_left() == pytest.approx(50)


def test_a_round_that_asks_again_has_lasted_since_it_was_first_asked():
    times = Rounds()
    times.begin_phase(3, 0)
    for at in (0.0, 40.0):
        times.begin_round(1, 3, at)
    times.end_round(50.0)
    assert times.left(50.0) == pytest.approx(100)


def test_steps_are_told_a_few_times_a_second_and_the_first_and_the_last_of_a_round_always():
    now, told = [0.0], []
    seldom = Seldom(lambda *step: told.append(step), 0.25, lambda: now[0])
    for step in range(1, 1001):
        now[0] += 0.001
        seldom(step, 1000, 0.5)
    assert told[0] == (1, 1000, 0.5) and told[-1] == (1000, 1000, 0.5) and len(told) <= 6


def test_a_log_gets_the_lines_that_it_always_got(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 7.25)
    pipe = io.StringIO()
    plain = PlainReporter(pipe)
    begin(plain)
    run_round(plain, "pretrain", 1, 4)
    plain.on_site_refused("birch", "lost")
    plain.on_phase_end("pretrain", 1, "all rounds done")
    plain.on_evaluated({"alder": {"test.dice": 0.7}}, {"dice_mean": 0.7, "dice_worst": 0.7})
    plain.on_study_end(75.0, "runs/demo")
    assert pipe.getvalue() == (
        "[    0.0 s] demo [federated]: 2 sites (alder, birch); pretrain 4 rounds, segment 4 rounds\n"
        "[    0.0 s] pretrain: from round 1 of 4\n"
        "[    0.0 s] pretrain   1: Dice 0.6100  1.0 s  (best: round 1)\n"
        "[    0.0 s]   birch: not in this round: lost\n"
        "[    0.0 s] pretrain: ended, all rounds done; the model of round 1 is final\n"
        "[    0.0 s] test alder: Dice 0.7000\n"
        "[    0.0 s] test: mean Dice 0.7000, worst 0.7000\n"
        "[    0.0 s] done in 75 s: runs/demo\n"
    )


def test_what_should_stay_is_printed_once_and_is_no_markup():
    console = terminal()
    reporter = RichReporter(console)
    begin(reporter, start_round=2)
    reporter.on_site_refused("birch", "tensor 'a[red]b[/red]' holds NaN")
    run_round(reporter, "pretrain", 2, 4)
    reporter.on_phase_end("pretrain", 2, "no better figure in 20 rounds")
    sites = {"alder": {"test.dice": 0.7512, "test.n": 30.0}, "[b]irch": {}}
    reporter.on_evaluated(sites, {"dice_mean": 0.75, "dice_worst": None})
    reporter.on_study_end(75.0, "runs/demo")
    reporter.close()
    text = console.file.getvalue()
    for once in (
        "a[red]b[/red]",
        "pretrain 2/4",
        "goes on with round 2",
        "no better figure",
        "0.7512",
        "[b]irch",
    ):
        assert text.count(once) == 1, once
    assert "1 min 15 s: runs/demo" in text


def test_printed_and_logged_lines_are_not_lost(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    handler = logging.StreamHandler()  # keeps the stream that it was made with
    logger = logging.getLogger("test_progress")
    logger.addHandler(handler)
    held, out, err = handler.stream, sys.stdout, sys.stderr
    console = terminal()
    reporter = RichReporter(console)
    try:
        begin(reporter)
        logger.warning("a logged line")
        print("a printed line")
        time.sleep(0.3)
    finally:
        reporter.close()
        logger.removeHandler(handler)
    assert "a logged line\n" in console.file.getvalue() and "a printed line\n" in console.file.getvalue()
    assert held.getvalue() == ""
    assert (handler.stream, sys.stdout, sys.stderr) == (held, out, err)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_terminal_is_given_back_when_the_study_breaks_off(error):
    console = terminal()
    reporter = RichReporter(console)
    out = sys.stdout
    with pytest.raises(error):
        try:
            begin(reporter)
            reporter.on_round_start("pretrain", 1, 4, ["alder"])
            raise error
        finally:
            reporter.close()
    reporter.close()
    text = console.file.getvalue()
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    assert sys.stdout is out


def test_methods_that_are_compared_follow_one_another():
    console = terminal()
    reporter = RichReporter(console)
    for method in ("federated", "local"):
        reporter.on_study("demo", ["alder", "birch"], {"segment": 1}, method)
        reporter.on_phase("segment", 1, 1)
        run_round(reporter, "segment", 1, 1)
        reporter.on_evaluated({"alder": {"test.dice": 0.5}}, {"dice_mean": 0.5, "dice_worst": 0.5})
    reporter.on_study_end(3.0, "runs/demo")
    reporter.close()
    assert "demo, for comparison: local" in console.file.getvalue()


def test_more_sites_than_lines_fit_on_the_terminal():
    console = Console(force_terminal=True, file=io.StringIO(), width=80, height=12)
    reporter = RichReporter(console)
    sites = [f"site_{index}" for index in range(40)]
    reporter.on_study("demo", sites, {"segment": 1})
    reporter.on_phase("segment", 1, 1)
    reporter.on_round_start("segment", 1, 1, sites)
    lines = drawn(reporter).splitlines()
    reporter.close()
    assert len(lines) <= 12 and "and 34 more" in lines[-1]
