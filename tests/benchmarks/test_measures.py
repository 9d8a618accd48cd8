"""Figures of several pictures' masks are what their pixels say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import tables
from benchmarks.grid.measures import SIZES, area_by_size, count_pixels, summary


def _figures(*pictures: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Of pictures of 10 x 10 with so many pixels predicted, true, and both at once."""
    rows = []
    for predicted, true, overlap in pictures:
        prediction, truth = np.zeros((2, 100), np.uint8)
        truth[:true] = 1
        prediction[true - overlap : true - overlap + predicted] = 1
        counted = count_pixels(prediction.reshape(10, 10), truth.reshape(10, 10))
        assert counted == {"overlap": overlap, "predicted": predicted, "true": true, "pixels": 100}
        dice = 2 * overlap / (predicted + true) if predicted + true else 1.0
        rows.append(counted | {"dice": dice, "iou": dice / (2 - dice)})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_pooled_dice_counts_pixels_and_the_mean_counts_pictures():
    found = summary([_figures((40, 40, 40)), _figures((4, 4, 0))])
    assert found["dice"] == 0.5
    assert found["pooled_dice"] == pytest.approx(80 / 88, abs=1e-4)


def test_precision_and_recall_tell_masks_that_are_too_large_from_those_too_small():
    large, small = summary([_figures((40, 20, 20))]), summary([_figures((10, 20, 10))])
    assert (large["precision"], large["recall"]) == (0.5, 1.0)
    assert (small["precision"], small["recall"]) == (1.0, 0.5)


@pytest.mark.parametrize(("predicted", "true", "value"), [(0, 0, 1.0), (7, 0, 0.0), (0, 7, 0.0)])
def test_empty_masks_follow_the_rule_of_dice(predicted, true, value):
    found = summary([_figures((predicted, true, 0))])
    assert found["precision"] == found["recall"] == found["pooled_dice"] == found["dice"] == value


def test_areas_are_those_of_the_pictures_of_a_size():
    figures = _figures((4, 1, 1), (2, 2, 2), (3, 4, 3), (30, 20, 20), (9, 0, 0))
    assert area_by_size([figures]) == {
        "0-2 %": {"n": 1, "area": 4.0},
        "2-5 %": {"n": 2, "area": round(5 / 6, 3)},
        "20-100 %": {"n": 1, "area": 1.5},
    }
    assert area_by_size([_figures((100, 100, 100))]) == {"20-100 %": {"n": 1, "area": 1.0}}
    assert list(SIZES) == ["0-2 %", "2-5 %", "5-10 %", "10-20 %", "20-100 %"]


def test_no_picture_has_no_figure():
    assert summary([]) == {"dice": None, "iou": None, "pooled_dice": None, "precision": None, "recall": None}
    assert area_by_size([]) == {}


def _cell(seed: int, more: dict) -> dict:
    return {
        "dataset": "qata",
        "profile": "cpu",
        "setting": "federated",
        "labels": 0.1,
        "method": "dusss",
        "seed": seed,
        "test": {"dice": 0.7} | more,
        "text_mask": {"dice": None},
        "with_sentence": {"dice": None},
        "test_dice_per_picture": [700],
    }


def test_the_page_shows_what_a_file_has_and_reads_files_without():
    told = {"pooled_dice": 0.812, "precision": 0.7, "recall": 0.9, "area_by_size": {"0-2 %": {"n": 3, "area": 2.5}}}
    assert "pooled" not in tables.tables([_cell(1, {})])
    text = tables.tables([_cell(1, {}), _cell(2, told)])
    assert "| dusss, 10 % | 70.0 / 81.2 / 70.0 / 90.0 |  |  |" in text
    mask = {"dice": 0.1, "test_dice": 0.5, **told}
    assert "/ 90.0 | 50.0 / 81.2 / 70.0 / 90.0 |  |" in tables.tables([{**_cell(2, told), "text_mask": mask}])
    assert "- Student, dusss, 10 %: 0-2 % 2.50 (3)." in text
