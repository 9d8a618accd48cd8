"""report.html where methods were compared: charts, differences and first sentence are over the same sites."""

from __future__ import annotations

import json

from tests.server.fake_run import write_run
from tests.server.report.test_report import report_of, rewritten


def test_means_that_stand_side_by_side_are_over_the_same_sites(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "Test Dice, Mean over sites: Federated 0.720, Each site alone 0.630" in report_of(folder)[0]
    summary = json.loads((folder / "summary.json").read_text())
    local = summary["compare"]["local"]
    del local["sites"]["cedar"]  # it could not train alone; it was the lowest
    local["dice_mean"] = 0.645
    (folder / "summary.json").write_text(json.dumps(summary))
    text = report_of(folder)[0]
    assert "Test Dice, Mean over 2 of 3 sites: Federated 0.735, Each site alone 0.645" in text


def test_the_federated_model_is_shown_at_a_site_that_is_only_tested_too(tmp_path):
    folder = write_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    summary["external_test"] = {"outer": {"n_test": 12, "dice": 0.444}}
    for row in summary["compare"]["local"]["across"].values():
        row["outer"] = 0.4
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "Federated, tested at outer: 0.44" in report_of(folder)[1].text


def test_the_first_sentence_counts_who_trained_and_says_of_equals_that_they_are(tmp_path):
    def idle(line):
        if line["site"] == "cedar":
            return {**line, "train": {}, "val": {}, "accepted": False, "reason": "no labels"}
        return line

    folder = rewritten(write_run(tmp_path / "run"), idle)
    summary = json.loads((folder / "summary.json").read_text())
    summary["compare"]["local"]["sites"] = {site: it["dice"] for site, it in summary["sites"].items()}
    (folder / "summary.json").write_text(json.dumps(summary))
    words = report_of(folder)[1].words
    assert "2 hospitals trained one model together." in words
    assert "its mean Dice is 0.720: as much as each hospital training alone and 1.0 points below" in words


def test_every_sites_own_model_is_shown_at_every_site(tmp_path):
    _, page = report_of(write_run(tmp_path / "run"))
    assert "alder, tested at cedar: 0.58" in page.text and "Federated, tested at cedar: 0.69" in page.text
    assert "mean Dice 0.630 at home" in page.words and "0.617 elsewhere" in page.words


def test_differences_are_shown_for_each_site(tmp_path):
    _, page = report_of(write_run(tmp_path / "run"))
    for site, dice in (("alder", "0.750"), ("birch", "0.720"), ("Mean over sites", "0.720")):
        assert f"{site} {dice} +9.0 −1.0 +2.5 +5.0" in page.words


def test_a_comparison_that_is_better_is_in_the_first_sentence(tmp_path):
    folder = write_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    for site, figures in summary["sites"].items():
        summary["compare"]["supervised"]["sites"][site] = figures["dice"] + 0.03
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "3.0 points below Fed. supervised" in report_of(folder)[1].words


def test_a_site_whose_evaluation_is_missing_counts_in_no_difference(tmp_path):
    folder = write_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    summary["sites"]["cedar"]["dice"] = None  # its answer was lost, and was the lowest
    summary["global"]["dice_mean"] = 0.735
    (folder / "summary.json").write_text(json.dumps(summary))
    words = report_of(folder)[1].words
    assert "its mean Dice is 0.735: 9.0 points above each hospital training alone" in words
    assert "and 1.0 points below training on the pooled data" in words
    assert "Mean over sites 0.735 +9.0 −1.0 +2.5 +5.0" in words


def test_the_first_sentence_says_that_it_is_of_the_shared_student_where_sites_have_their_own(tmp_path):
    folder = write_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text()) | {"personal": {"kind": "ditto", "dice_mean": 0.8}}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "that it never saw, the shared student's mean Dice is 0.720: 9.0 points above" in report_of(folder)[1].words


def test_a_verdict_of_the_summary_is_shown_as_text(tmp_path):
    folder = write_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text()) | {"verdict": "<b>Nowhere</b> below the best."}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "&lt;b&gt;Nowhere&lt;/b&gt; below the best." in report_of(folder)[0]
