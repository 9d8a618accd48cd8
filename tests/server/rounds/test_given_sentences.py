"""A study whose student is given sentences, in which one hospital has none, with the real method."""

from __future__ import annotations

import io
import json

import pytest

from server.report.page import page, write_report
from server.runs.events import PlainReporter
from server.runs.runfiles import read_run
from server.simulation.simulate import simulate
from tests.server.conftest import HOSPITALS, make_study

MUTE = {**HOSPITALS[0], "name": "mute", "text_missing": 1.0}
REASON = "the site has no sentences, and method.objective early_fusion gives them to the student"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder, summary and printed lines."""
    folder, printed = tmp_path_factory.mktemp("told"), io.StringIO()
    study = make_study(
        [*HOSPITALS, MUTE],
        method={"objective": "early_fusion"},
        student={"width": 4, "network": "early_fusion"},
        segment__rounds=1,
    )
    summary = simulate(study, folder, reporter=PlainReporter(printed))
    return folder, summary, printed.getvalue()


def test_it_is_left_out_by_name_and_the_others_go_on(run):
    folder, summary, printed = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    accepted = {line["site"]: line["accepted"] for line in lines if line["site"] != "*" and line["round"] == 1}
    assert accepted == {"alder": True, "birch": True, "mute": False}
    assert [line["reason"] for line in lines if line["site"] == "mute"] == [REASON]
    assert REASON in printed and summary["rounds"]["segment"]["trained"] == 1


def test_figures_with_the_sentence_are_in_every_place_beside_those_without(run):
    folder, summary, printed = run
    sites = summary["sites"]
    assert all(sites[name]["text_dice"] is not None for name in ("alder", "birch"))
    # it is tested as all are, and no sentence can be given
    assert sites["mute"]["dice"] is not None and "text_dice" not in sites["mute"]
    told = [sites[name]["text_dice"] for name in ("alder", "birch")]
    assert summary["global"]["text_dice_mean"] == pytest.approx(sum(told) / 2)
    assert summary["global"]["text_dice_worst"] == min(told)
    mean = f"{sum(told) / 2:.4f}"
    assert f"test, with the sentence: mean Dice {mean}, worst {min(told):.4f}" in printed
    alone = f"{sites['alder']['dice']:.4f}, pooled {sites['alder']['dice_pooled']:.4f}"
    assert f"test alder: Dice {alone}, with the sentence {told[0]:.4f}" in printed
    assert "val" in read_run(folder).rounds[0] and "text_dice" in read_run(folder).rounds[0]["val"]
    shown = page(read_run(folder))
    assert shown["told"] and "Dice with the sentence, mean" in [tile["name"] for tile in shown["headline"]]
    assert "Dice with the sentence" in write_report(folder).read_text()
