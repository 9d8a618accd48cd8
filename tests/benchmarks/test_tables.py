"""Tables of accuracy say what the files of the cells say."""

from __future__ import annotations

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
