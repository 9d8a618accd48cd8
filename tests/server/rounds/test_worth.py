"""Where text-guided masks lose at a site, the run says so in one line: console, summary.json and report."""

from __future__ import annotations

import json

import pytest

from dusss_core.phases import Phase
from server.report.page import write_report
from server.rounds.worth import Worth, judged, line
from server.runs.events import Reporter
from server.simulation.simulate import simulate
from tests.server.conftest import make_study

TRAIN = {"text_share": 0.2, "judged_text": 0.61, "judged_teacher": 0.7, "judged_student": 0.66, "judged_plain": 0.5}


def test_the_line_names_the_best_of_what_text_was_compared_with():
    assert line("B", judged(TRAIN)) == (
        "text-guided masks lose against the teacher at B: 0.61 against 0.70; they weigh 0.2 there"
    )
    nothing = {**TRAIN, "text_share": 0.0, "judged_plain": 0.9}
    assert line("B", judged(nothing)) == (
        "text-guided masks lose against a student of its labels alone at B: 0.61 against 0.90; they weigh nothing there"
    )
    full = {**TRAIN, "text_share": 1.0}
    below = line("B", judged(full))
    assert "are below" in below and "may be chance" in below and "hold against" not in below
    assert "hold against" in line("B", judged({**full, "judged_text": 0.99}))


@pytest.mark.parametrize("broken", [{"text_share": float("nan")}, {"judged_text": "0.6"}, {"text_share": None}])
def test_a_site_that_sends_no_numbers_is_not_judged(broken):
    assert judged({**TRAIN, **broken}) is None


def metrics(**changes):
    return {f"train.{name}": value for name, value in {**TRAIN, **changes}.items()}


def test_a_site_is_spoken_of_when_something_changes_there_and_not_each_round():
    worth = Worth(make_study())
    told = [
        worth.news(Phase.SEGMENT, {"a": metrics(text_share=share), "b": metrics(text_share=1.0)})
        for share in (1.0, 0.4, 0.3, 0.0, 0.0, 1.0)
    ]
    assert [len(lines) for lines in told] == [0, 1, 0, 1, 0, 1]
    assert "they weigh 0.4 there" in told[1][0] and "weigh nothing" in told[3][0] and "in full" in told[5][0]
    assert worth.news(Phase.SEGMENT, {"b": {"train.loss": 1.0}})[0].startswith("b: nothing tells")
    assert not Worth(make_study(method={"judge_text": False})).news(Phase.SEGMENT, {"a": metrics()})


class Told(Reporter):
    def __init__(self):
        self.lines = []

    def on_message(self, text):
        self.lines.append(text)


HOSPITALS = [
    {"name": "alder", "train": 16, "val": 12, "test": 6, "label_fraction": 0.5},
    {"name": "birch", "train": 16, "val": 0, "test": 6, "label_fraction": 0.5},
]


def harmful():
    """A study whose text-guided masks are empty, since step 1 has learnt nothing, and whose student learns well."""
    return make_study(
        HOSPITALS,
        image={"size": 32},
        pretrain={"rounds": 1, "batch": 8, "optimizer": {"lr": 1e-7}},
        segment={"rounds": 2, "batch": 4, "epochs": 4, "plain_share": 1.0, "optimizer": {"lr": 1e-2}},
        student={"width": 8},
        simulation__data__synth__contrast=3.0,
    )


def test_a_study_whose_masks_do_harm_says_so_and_learns_nothing_from_them_where_that_is_known(tmp_path):
    reporter = Told()
    summary = simulate(harmful(), tmp_path / "run", reporter=reporter)
    worth = summary["text_worth"]
    assert worth["alder"]["share"] == 0 and worth["alder"]["text"] < worth["alder"]["reference"]
    lost = [told for told in reporter.lines if told.startswith("text-guided masks lose against")]
    assert len(lost) == 1 and "at alder: 0.0" in lost[0] and lost[0].endswith("they weigh nothing there")
    # a site without validation pictures: in full, and it is said that nothing tells
    assert set(worth["birch"]) == {"told"} and worth["birch"]["told"] in reporter.lines

    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rounds = [one for one in lines if (one["site"], one["phase"]) == ("alder", "segment") and "train" in one]
    assert [one["train"]["text_share"] for one in rounds] == [0, 0]
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert worth["alder"]["told"] in page and worth["birch"]["told"] in page
