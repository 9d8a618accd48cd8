"""Tables of accuracy say what the files of the cells say."""

from __future__ import annotations

import json
import re

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


def test_better_is_tested_picture_by_picture_within_a_seed(results):
    low, _, dusss, teacher = results
    assert tables.p_better([dusss], [low]) < 1e-6
    assert tables.p_better([teacher], [low]) > 0.1
    assert tables.p_better([dusss], [{**low, "seed": 2}]) is None


def test_a_table_has_a_row_per_method_and_a_column_per_share(results):
    text = tables.tables(results)
    assert "| method | 10 % | 100 % |" in text and "| dusss | 67.0, 75 % of the gap |" in text
    assert "better than mean_teacher: p = " in text


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
    assert "better than supervised: p = " in own and "settings compared" not in own
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
    assert "| dusss, 10 %, seed 1 | 67.0 | 60.0 | local: p = " in text
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
