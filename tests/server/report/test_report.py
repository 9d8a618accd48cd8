"""report.html: complete, self-contained, honest about unfinished runs, and safe from what a site sends."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from dusss_core.errors import UserError
from dusss_core.phases import Phase
from dusss_core.privacy.accounting import epsilon
from dusss_core.privacy.mechanism import charge_of
from feddusss import configfile
from server.report.marks import short_names
from server.report.page import write_report
from server.report.quantities import show_bytes, show_points, show_seconds
from tests.server.conftest import make_study
from tests.server.fake_run import SITES, round_lines, write_run

_VOID = {"meta", "link", "br", "hr", "img", "input"}
_SELF_CLOSED = {"line", "polyline", "rect", "circle"}


class _Page(HTMLParser):
    """Elements and text of a page; checks that what is opened is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def report_of(folder) -> tuple[str, _Page]:
    text = write_report(folder).read_text(encoding="utf-8")
    return text, _Page(text)


def test_the_page_shows_the_figures_of_the_summary(tmp_path):
    _, page = report_of(write_run(tmp_path / "run"))
    for figure in ("0.720", "0.724", "0.690", "0.590", "0.709", "6.6"):
        assert figure in page.words
    assert "3 hospitals trained one model together" in page.words
    assert "9.0 points above each hospital training alone" in page.words
    assert "1.0 points below training on the pooled data" in page.words
    assert "below Fed." not in page.words
    for site, (labelled, unlabelled, _) in SITES.items():
        assert site in page.words
        assert str(labelled) in page.words and str(unlabelled) in page.words
    assert "Not finished" not in page.words


def test_every_site_is_compared_with_every_method(tmp_path):
    _, page = report_of(write_run(tmp_path / "run"))
    described = [svg["aria-label"] for svg in page.named("svg") if svg["aria-label"].startswith("Test Dice, ")]
    assert len(described) == 1 + len(SITES)
    for method in ("Federated", "Each site alone", "Data pooled", "Fed. Mean Teacher", "Fed. supervised"):
        assert all(method in label for label in described)


def test_without_comparisons_one_chart_shows_all_sites(tmp_path):
    folder = write_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text()) | {"compare": {}}
    (folder / "summary.json").write_text(json.dumps(summary))
    _, page = report_of(folder)
    described = [svg["aria-label"] for svg in page.named("svg") if svg["aria-label"].startswith("Test Dice")]
    assert len(described) == 1 and all(site in described[0] for site in SITES)


def test_a_method_that_could_not_run_has_its_reason_in_place_of_a_bar(tmp_path):
    folder = write_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    summary["compare"]["mcnet"] = {"reason": "mcnet does not work on <encoder>"}
    (folder / "summary.json").write_text(json.dumps(summary))
    text, page = report_of(folder)
    assert "Not compared: mcnet: mcnet does not work on &lt;encoder&gt;" in text
    described = [svg["aria-label"] for svg in page.named("svg") if svg["aria-label"].startswith("Test Dice, ")]
    assert described and not any("mcnet" in label for label in described)
    assert all("Data pooled" in label for label in described)


def test_the_page_asks_for_nothing_from_outside(tmp_path):
    text, page = report_of(write_run(tmp_path / "run"))
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?://|url\(|@import", text)
    policies = [meta["content"] for meta in page.named("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_nothing_from_a_site_becomes_html(tmp_path):
    hostile = "<script>alert(1)</script>\"'&{{7*7}}"
    folder = write_run(tmp_path / "run", sites={hostile: (1, 2, 3), "plain": (4, 5, 6)})
    with (folder / "metrics.jsonl").open("a") as file:
        line = round_lines("segment", 10, {hostile: ()})[0]
        line["train"] = {"<img src=x onerror=alert(2)>": 1.0, "loss": "<b>no number</b>"}
        file.write(json.dumps(line) + "\n")
    (folder / "config.yaml").write_text("study: </pre><script>alert(3)</script>\n", encoding="utf-8")
    text, page = report_of(folder)
    assert not {"script", "img", "b"} & {tag for tag, _ in page.elements}
    assert "49" not in [word.strip() for word in page.text]
    assert hostile in page.text
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "<script" not in text


def test_an_unfinished_run_says_so(tmp_path):
    folder = write_run(tmp_path / "run", finished=False, until=4)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "segment", "round": 5, "si')  # being written at this moment
    _, page = report_of(folder)
    assert "Not finished: pretrain round 6 of 6, segment round 4 of 10" in page.words
    assert "Validation Dice" in page.words


def test_a_run_without_a_finished_round_has_a_report(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("study: fresh\n", encoding="utf-8")
    _, page = report_of(folder)
    assert "no round is finished yet" in page.words and "fresh" in page.words


def test_validation_is_drawn_at_the_round_that_made_the_model(tmp_path):
    _, page = report_of(write_run(tmp_path / "run"))
    labels = [svg["aria-label"] for svg in page.named("svg")]
    assert sum("Validation Dice by round" in label for label in labels) == 2
    assert "alder, round 0: " in page.words and "alder, round 10: " in page.words
    assert "alder, round 11" not in page.words


def test_answers_that_were_refused_are_listed_with_their_reason(tmp_path):
    folder = write_run(tmp_path / "run")
    line = {"phase": "segment", "round": 9, "site": "birch", "accepted": False, "reason": "no answer in time"}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**line, "bytes_up": 0, "bytes_down": 1_900_000}) + "\n")
    _, page = report_of(folder)
    assert (
        "Answers that were not used" in page.words
        and "birch Segmentation (step 2) 9 1 of 10 no answer in time" in page.words
    )


def test_every_kind_of_figure_that_a_site_sent_is_listed(tmp_path):
    folder = write_run(tmp_path / "run")
    line = round_lines("segment", 3, {"alder": ()})[0] | {"num-examples": 160, "state": {"age": 0}}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    _, page = report_of(folder)
    for name in ("num-examples", "state.age", "seconds", "train.sup", "val.dice"):
        assert name in page.text


def test_missing_and_non_finite_figures_are_shown_as_missing(tmp_path):
    folder = write_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    summary["sites"]["alder"] |= {"dice": None, "hd95": float("nan")}
    del summary["compare"], summary["text_mask"], summary["shared"], summary["seconds"]
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0]) | {"train": {"loss": float("inf")}, "val": None}
    (folder / "metrics.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    text, page = report_of(folder)
    assert "nan" not in text.lower().replace("nanum", "")
    assert "Infinity" not in text and ">inf<" not in text
    assert "–" in page.words and "no figure" in page.words


def test_a_round_that_was_trained_again_counts_once(tmp_path):
    folder = write_run(tmp_path / "run")
    again = round_lines("segment", 10, SITES)
    before, _ = report_of(folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in again)
    assert report_of(folder)[0] == before


@pytest.mark.parametrize("count", [1, 9, 30])
def test_any_number_of_sites_can_be_drawn(tmp_path, count):
    sites = {f"hospital-with-a-rather-long-name-{index}": (5, 5, 5) for index in range(count)}
    _, page = report_of(write_run(tmp_path / "run", sites=sites))
    heights = [float(svg["viewbox"].split()[3]) for svg in page.named("svg")]
    # some charts have a row for each site
    most = max(400, 120 + 22 * count)
    assert all(0 < height < most for height in heights)
    ends = [float(text["y"]) for text in page.named("text") if "y" in text]
    assert all(-20 < y < most for y in ends)


def test_pictures_of_one_round_and_of_flat_lines_can_be_drawn(tmp_path):
    folder = write_run(tmp_path / "run")
    lines = [{"phase": "segment", "round": 1, "site": "alder", "train": {"loss": 0.0}, "val": {"dice": 1.0}}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, page = report_of(folder)
    assert "Training loss" in page.words


@pytest.mark.parametrize("figures", [(0.0, 5e-324), (5e-324, 1e-323), (1e12, 1e12 + 1e-4), (1.0, 1 + 2**-52)], ids=str)
def test_figures_that_can_hardly_be_told_apart_do_not_cost_the_report(tmp_path, figures):
    """One site could send such, and all would be without a report."""
    folder = write_run(tmp_path / "run")
    lines = [
        {"phase": "segment", "round": round, "site": "alder", "train": {"loss": loss}, "val": {"loss": loss}}
        for round, loss in enumerate(figures, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, page = report_of(folder)
    assert "Training loss" in page.words


def test_damaged_files_are_named_with_the_row(tmp_path):
    with pytest.raises(UserError, match=r"not a folder of a run"):
        write_report(tmp_path)
    folder = write_run(tmp_path / "run")
    good = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text("{broken\n" + good)
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1"):
        write_report(folder)
    (folder / "metrics.jsonl").write_text(good)
    (folder / "summary.json").write_text("[")
    with pytest.raises(UserError, match=r"summary\.json"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_figures_stand_with_what_is_behind_them(tmp_path):
    folder = write_run(tmp_path / "run")
    _, page = report_of(folder)
    for shown in ("0.750 0.710 to 0.780", "0.810 0.770 to 0.840", "0.620 0.580 to 0.650", "6.2 5.1 to 8.2"):
        assert shown in page.words  # alder: Dice per picture, pooled, IoU, HD95
    assert "30 28" in page.words  # test pictures, and those with a finding
    labels = [svg["aria-label"] for svg in page.named("svg")]
    assert "Test Dice by site, worst first: cedar 0.690; birch 0.720; alder 0.750" in labels
    assert (
        "alder: 6 pictures with Dice 0.2 to 0.6" in page.text and "alder: 17 pictures with Dice 0.6 to 0.8" in page.text
    )
    summary = json.loads((folder / "summary.json").read_text())
    for site in summary["sites"].values():
        del site["intervals"], site["dice_bins"]
    (folder / "summary.json").write_text(json.dumps(summary))
    _, page = report_of(folder)
    assert "0.710 to 0.780" not in page.words and "pictures with Dice" not in page.words


def test_each_class_has_its_dice_of_both_kinds(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "Dice of each class" not in report_of(folder)[1].words
    summary = json.loads((folder / "summary.json").read_text())
    summary["sites"]["alder"] |= {"dice_1": 0.61, "dice_pooled_1": 0.66, "n_positive_1": 21, "dice_2": 0.31}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text("study: demo\nimage: {classes: 2, names: [lesion, <organ>]}\n")
    text, page = report_of(folder)
    assert "Dice of each class" in page.words and "0.610 pooled 0.660 , in 21" in page.words.replace("0, in", "0 , in")
    assert "&lt;organ&gt;" in text and "0.310 pooled –" in page.words


def test_a_part_of_the_time_is_never_shown_as_part_of_a_smaller_whole(tmp_path):
    """Sites that work side by side work longer, added up, than the time that passed."""
    folder = write_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    summary["seconds"] = {"pretrain": 47.0, "segment": 40.0, "evaluate": 3.0, "total": 90.0, "training_at_sites": 150.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    _, page = report_of(folder)
    assert "Sites work side by side" in page.words and "of it, the sites' own work" not in page.words
    time = page.words[page.words.index("Part of the run") :]
    # three sites, 6 and 10 rounds of 1.5 + 2.5 + 3.5 s
    assert "Pretraining (step 1) 47 s 45 s Segmentation (step 2) 40 s 1 min 15 s" in time
    assert "Evaluation 3.0 s – Total 1 min 30 s 2 min 00 s" in time


def test_a_column_says_what_it_holds(tmp_path):
    _, page = report_of(write_run(tmp_path / "run"))
    time = page.words[page.words.index("Part of the run") :]
    assert time.startswith("Part of the run Time that passed Sites' own work, added up") and "Rounds" not in time


@pytest.mark.parametrize(
    "names",
    [
        [f"hospital-with-a-rather-long-name-{index}" for index in range(9)],
        [f"{index}-hospital-with-a-rather-long-name" for index in range(9)],
        [f"hospital-with-a-rather-{index}-long-name-indeed" for index in range(12)],
        ["north", "north-of-the-river", "north-of-the-railway"],
    ],
)
@pytest.mark.parametrize("length", [11, 16, 18])
def test_names_that_are_cut_can_still_be_told_apart(names, length):
    short = short_names(names, length)
    assert list(short) == names and len(set(short.values())) == len(names)
    assert all(len(cut) <= length for cut in short.values())
    assert all(short[name] == name for name in names if len(name) <= length)


def test_no_legend_has_the_same_name_twice(tmp_path):
    sites = {f"hospital-with-a-rather-long-name-{index}": (5, 5, 5) for index in range(3)}
    text, _ = report_of(write_run(tmp_path / "run", sites=sites))
    for chart in re.findall(r"<svg.*?</svg>", text, re.S):
        # names of lines, bars and rows; values may be equal
        shown = re.findall(r"<text[^>]*>([^<]*…[^<]*)<title>", chart)
        twice = 2 if "own models" in chart else 1  # a matrix names a site at its row and at its column
        assert all(shown.count(name) <= twice for name in shown)


def test_who_was_absent_is_told_by_site_phase_and_round(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "Nobody: every site took part in every round." in report_of(folder)[1].words
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = []
    for line in lines:
        place = line["phase"], line["site"]
        if place == ("segment", "birch") and line["round"] in (3, 5, 6, 7):
            line = {**line, "accepted": False, "reason": "no answer in time", "train": {}, "val": {}}
        if place == ("pretrain", "cedar") and line["round"] == 1:
            line = {**line, "accepted": False, "reason": "the site has no sentences", "train": {}, "val": {}}
        if place != ("pretrain", "cedar") or line["round"] == 1:
            kept.append(line)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    _, page = report_of(folder)
    assert "birch Segmentation (step 2) 3, 5–7 4 of 10 no answer in time" in page.words
    assert "cedar Pretraining (step 1) 1 1 of 6 the site has no sentences" in page.words
    assert "cedar Pretraining (step 1) 2–6 5 of 6 not asked again: the site has no sentences" in page.words
    assert "alder Segmentation (step 2)" not in page.words


def rewritten(folder, change):
    """The run with each line of metrics.jsonl as `change` makes it."""
    path = folder / "metrics.jsonl"
    lines = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_rounds_of_private_sites_which_tell_nothing_of_their_training_are_counted(tmp_path):
    def private(line):
        kept = ("phase", "round", "site", "bytes_up", "bytes_down", *(["seconds"] if line["site"] == "*" else []))
        line = {name: line[name] for name in kept if name in line}
        if (line["phase"], line["round"], line["site"]) == ("segment", 4, "birch"):
            return line | {"accepted": False, "reason": "no answer in time"}
        return line

    folder = rewritten(write_run(tmp_path / "run"), private)
    words = report_of(folder)[1].words
    assert "Pretraining (step 1) 6 9.3 MB 9.3 MB" in words and "Segmentation (step 2) 10 5.7 MB 5.7 MB" in words
    assert "birch Segmentation (step 2) 4 1 of 10 no answer in time" in words
    (folder / "summary.json").unlink()
    assert "pretrain round 6 of 6, segment round 10 of 10" in report_of(folder)[1].words


def test_a_refusal_when_the_last_model_is_validated_makes_no_further_round(tmp_path):
    def refused(line):
        if (line["phase"], line["round"], line["site"]) == ("segment", 11, "birch"):
            return {**line, "val": {}, "accepted": False, "reason": "no answer in time"}
        return line

    folder = rewritten(write_run(tmp_path / "run"), refused)
    assert "Segmentation (step 2) 10 5.7 MB 5.7 MB" in report_of(folder)[1].words
    (folder / "summary.json").unlink()
    assert "segment round 10 of 10" in report_of(folder)[1].words


def test_privacy_that_was_spent_is_told_for_each_private_site(tmp_path):
    study = make_study(method={"preset": "mean_teacher"}, student={"width": 4, "norm": "group"})
    study = study.model_copy(update={"privacy": study.privacy.model_copy(update={"noise_multiplier": 1.0})})
    folder = write_run(tmp_path / "run")
    assert "No hospital trained with differential privacy" in report_of(folder)[1].words
    (folder / "config.yaml").write_text(configfile.dump(study))
    with (folder / "metrics.jsonl").open("w") as file:
        for round in (1, 2, 3):
            line = {"phase": "segment", "round": round, "site": "alder", "accepted": True}
            file.write(json.dumps({**line, "num-examples": 500, "ledger-charges": 7 + round}) + "\n")
    _, page = report_of(folder)
    each = charge_of(study.training(), Phase.SEGMENT)
    spent = epsilon([replace(each, steps=3 * each.steps)], 1e-5)
    assert f"alder – 3 {spent:.2f} 10" in page.words and "by themselves" in page.words


def test_quantities_are_written_for_people():
    assert show_bytes(9_300_000) == "9.3 MB" and show_bytes(512) == "512 B" and show_bytes(None) == "–"
    assert show_seconds(4.31) == "4.3 s" and show_seconds(131.2) == "2 min 11 s" and show_seconds(7260) == "2 h 01 min"
    assert show_points(-0.0123) == "−1.2" and show_points(0.05) == "+5.0"
