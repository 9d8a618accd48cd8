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
