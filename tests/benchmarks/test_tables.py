"""Tables of accuracy say what the files of the cells say."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from benchmarks import tables


def _cell(method: str, labels: float, seed: int, pictures: list[int]) -> dict:
    return {
        "dataset": "qata",
        "profile": "cpu",
        "setting": "federated",
        "labels": labels,
        "method": method,
        "seed": seed,
        "test": {"dice": sum(pictures) / len(pictures) / 1000},
        "text_mask": {"dice": None},
        "with_sentence": {"dice": None},
        "test_dice_per_picture": pictures,
    }


@pytest.fixture
def results() -> list[dict]:
    low, high = list(range(500, 540)), [value + 200 for value in range(500, 540)]
    middle = [value + 150 for value in low]
    return [
        _cell("supervised", 0.1, 1, low),
        _cell("supervised", 1.0, 1, high),
        _cell("dusss", 0.1, 1, middle),
        _cell("mean_teacher", 0.1, 1, low[::-1]),
    ]


def test_the_share_of_the_gap_is_that_between_supervised_and_all_labels(results):
    low, high, dusss, _ = results
    assert tables.gap_closed([dusss], [low], [high]) == pytest.approx(0.75)
    assert tables.gap_closed([dusss], [low], []) is None


def test_a_difference_is_that_of_the_seeds_that_both_cells_have(results):
    low, _, dusss, _ = results
    assert tables.difference([dusss], [low]) == (pytest.approx(15.0), None, 1)
    assert tables.difference([dusss], [{**low, "seed": 2}]) is None
    mean, interval, seeds = tables.difference([dusss, {**dusss, "seed": 2}], [low, {**low, "seed": 2}])
    assert seeds == 2 and mean == pytest.approx(15.0) and interval == (pytest.approx(15.0), pytest.approx(15.0))


def test_the_students_of_the_sites_stand_beside_the_shared_one_and_a_row_is_told_by_its_end(results):
    own = {"dice_mean": 0.75, "dice_worst": 0.5, "shared": {"dice_mean": 0.7, "dice_worst": 0.25}}
    row = {**results[0], "method": "supervised_ditto", "personal": own}
    better = {"dice_mean": 0.85, "dice_worst": 0.6, "shared": {"dice_mean": 0.8, "dice_worst": 0.35}}
    two = [*results, row, {**row, "seed": 2, "personal": better}]
    assert "| supervised_ditto, 10 % | 75.0 / 80.0 | 30.0 / 55.0 |" in tables.tables(two)
    text = tables.tables([*results, row, {**results[0], "method": "supervised_fedbn"}])
    assert "| supervised_ditto, 10 % | 70.0 / 75.0 | 25.0 / 50.0 |" in text
    assert "- `…_fedbn`: normalisation layers stay at the sites" in text and "_fedprox" not in text
    text = tables.tables([*results, {**results[0], "method": "dusss_fixbn_estimated"}])
    assert "- `…_fixbn_estimated`: " in text and "- `…_fixbn`: " not in text and "- `…_estimated`: " not in text
    assert "each site's own" not in tables.tables(results)


def test_each_site_stands_beside_itself_alone_with_a_student_of_its_own_and_left_out(results):
    def cell(setting: str, seed: int = 1, **more) -> dict:
        return {**results[0], "method": "supervised", "setting": setting, "seed": seed, **more}

    def sites(a: float, b: float) -> dict:
        return {"a": {"dice": a}, "b": {"dice": b}, "official_test": {"dice": 0.1}}

    own = {"sites": {"a": {"dice": 0.9}, "b": {"dice": 0.6}}, "dice_mean": 0.75, "dice_worst": 0.6}
    own["shared"] = {"dice_mean": 0.45, "dice_worst": 0.4}
    out = {"site": "b", "dice": 0.25, "n": 2}
    text = tables.tables(
        [
            cell("local", sites=sites(0.3, 0.2), federations={}),
            cell("federated", sites=sites(0.5, 0.4), personal=own),
            cell("federated", 2, sites=sites(0.7, 0.4)),
            cell("left_out_B", sites=sites(0.8, 0.8), left_out=out),
        ]
    )
    page = text[text.index("### qata · cpu · site by site") :].splitlines()
    assert page[2] == "|  | a | b | mean | worst |"
    assert page[4:] == [
        "| supervised, 10 %, seed 1: alone | 30.0 | 20.0 | 25.0 | 20.0 |",
        "| supervised, 10 %, seed 1, 2: federated | 60.0 | 40.0 | 50.0 | 40.0 |",
        "| supervised, 10 %, seed 1: federated, own student | 90.0 | 60.0 | 75.0 | 60.0 |",
        "| supervised, 10 %, seed 1: left out |  | 25.0 |  |  |",
    ]
    assert "left_out_B" not in text
    assert "site by site" not in tables.tables([cell("federated", sites=sites(0.5, 0.4))])


def test_single_runs_have_a_difference_and_neither_interval_nor_p(results):
    alone = {**results[2], "setting": "local", "federations": {}}
    text = tables.tables([*results, alone])
    assert "against mean_teacher +15.0;" in text or "against mean_teacher +15.0." in text
    assert "p = " not in text and "seeds)" not in text and " to " not in text
    assert "p = " not in tables.PAGE.read_text(encoding="utf-8")


def test_cells_with_several_seeds_in_common_have_an_interval_that_says_how_many(results):
    low, _, dusss, _ = results
    better = {**dusss, "seed": 2, "test_dice_per_picture": [value + 20 for value in dusss["test_dice_per_picture"]]}
    text = tables.tables([*results, better, {**low, "seed": 2}])
    assert "against supervised +16.0 (+15.0 to +17.0, 2 seeds)" in text
    assert "against mean_teacher +15.0;" in text or "against mean_teacher +15.0." in text  # one seed in common
    assert "p = " not in text


def test_pictures_that_are_the_same_for_all_seeds_are_drawn_once_for_all(results):
    random = np.random.default_rng(0)
    low, _, dusss, _ = results
    noisy = {**dusss, "test_dice_per_picture": [int(v) for v in random.integers(300, 900, 40)]}
    ours, theirs = ([{**cell, "seed": seed} for seed in (1, 2)] for cell in (noisy, low))
    own = tables.difference(ours, theirs).interval
    same = tables.difference(*([{**r, "same_pictures": True} for r in cells] for cells in (ours, theirs))).interval
    assert same[1] - same[0] > 1.2 * (own[1] - own[0])


def test_a_table_has_a_row_per_method_and_a_column_per_share(results):
    text = tables.tables(results)
    assert "| method | 10 % | 100 % |" in text and "| dusss | 67.0, 75 % of the gap |" in text
    assert "- DuSSS, 10 %: against mean_teacher +15.0; against supervised +15.0." in text


def test_pictures_that_no_cell_draws_have_a_table_of_their_own(results):
    def also(result, pictures):
        dice = sum(pictures) / len(pictures) / 1000
        unread = {"dice": dice, "iou": 0.5, "n": len(pictures), "with_sentence": None, "dice_per_picture": pictures}
        return {**result, "unread": unread}

    low, high, dusss, teacher = results
    pictures = list(range(400, 1440))
    both = [also(low, pictures), also(dusss, [value + 100 for value in pictures]), high, teacher]
    text = tables.tables(both)
    own = text[text.index("1,040 test pictures that no cell draws") :]
    assert "| supervised | 92.0 |" in own and "| dusss | 102.0 |" in own and "mean_teacher |" not in own
    assert "against supervised +10.0." in own and "settings compared" not in own
    assert tables.charts(both).keys() == tables.charts(results).keys()


def test_below_supervised_there_is_no_share_of_the_gap(results):
    worse = _cell("clip", 0.1, 1, [value - 100 for value in range(500, 540)])
    assert re.search(r"\| clip \| [\d.]+, below supervised \|", tables.tables([*results, worse]))


def test_a_gap_is_of_the_seeds_that_all_three_have(results):
    low, high, dusss, _ = results
    another = {**low, "seed": 2, "test": {"dice": 0.9}}
    assert tables.gap_closed([dusss], [low, another], [high]) == pytest.approx(0.75)
    assert tables.gap_closed([dusss], [another], [high]) is None


def test_settings_are_compared_on_the_same_seeds(results):
    _, _, dusss, _ = results
    alone = {**dusss, "setting": "local", "test": {"dice": 0.6}, "federations": {"a": 0.58, "b": 0.62}}
    alone["test_dice_per_picture"] = [value - 60 for value in dusss["test_dice_per_picture"]]
    text = tables.tables([*results, alone, {**alone, "seed": 2, "test": {"dice": 0.1}}])
    assert "| dusss, 10 %, seed 1 | 67.0 | 60.0 | local +6.0 |" in text
    assert "- Each site's model, dusss, 10 %, seed 1: a 58.0, b 62.0." in text


def test_a_chart_is_drawn_where_a_method_was_measured_with_several_shares_of_labels(results):
    ((name, svg),) = tables.charts(results).items()
    assert name == "accuracy_qata_cpu_federated.svg"
    assert "supervised: 0.5" in svg and "DuSSS" not in svg  # a line needs two points
    assert f"(images/{name})" in tables.tables(results, {name: svg})
    assert tables.charts(results[2:]) == {}
    other_seed = {**results[0], "seed": 2, "test": {"dice": 0.1}}
    assert tables.charts([*results, other_seed]) == {name: svg}
    assert "images/" not in tables.tables(results[2:])


def test_check_sees_a_chart_that_is_not_that_of_the_files(results, tmp_path):
    page, charts, cells = tmp_path / "page.md", tmp_path / "images", tmp_path / "cells"
    page.write_text(f"{tables.BEGIN}\n{tables.END}\n")
    cells.mkdir()
    for number, cell in enumerate(results):
        (cells / f"{number}.json").write_text(json.dumps(cell))
    paths = ["--results", str(cells), "--page", str(page), "--charts", str(charts)]
    assert tables.main([*paths, "--check"]) == 1
    assert tables.main(paths) == 0
    assert tables.main([*paths, "--check"]) == 0
    next(charts.iterdir()).write_text("<svg/>")
    assert tables.main([*paths, "--check"]) == 1


def test_the_page_says_which_rows_are_to_the_letter_of_the_paper(results):
    low = results[0]
    both = [{**low, "method": name} for name in ("table2_110", "paper_table2_110")]
    assert "`paper_table2_…`: SSS, DCL and Ltg on (1) or off (0) to the letter of the paper" in tables.tables(both)
    assert "to the letter" not in tables.tables(both[:1]) and "- `table2_…`" not in tables.tables(both[1:])


def test_cells_that_read_other_sentences_are_a_row_of_their_own(results):
    dusss = results[2]
    cells = [tables.with_text_in_method(cell) for cell in (dusss, {**dusss, "text": "text_meta"})]
    assert [cell["method"] for cell in cells] == ["dusss", "dusss, text_meta"]
    assert tables.with_text_in_method({**dusss, "text": "text"})["method"] == "dusss"
