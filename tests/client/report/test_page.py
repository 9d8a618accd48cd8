"""The page of sheets: what comes from data is text, classes are told apart, and what is not known is not made up."""

from __future__ import annotations

import base64
import io
import re
import stat

import numpy as np
import pytest
from PIL import Image

from client.report.page import PREDICTED, SMALL, TRUTH, write_page
from client.report.sheet import STUDENT, TEXT_MASK, Row, Sheet
from dusss_core.predicting.outputs import COLOURS

PICTURE = np.full((1, 32, 32), 100, np.uint8)


def square(index: int, at: int) -> np.ndarray:
    mask = np.zeros((32, 32), np.uint8)
    mask[at : at + 8, at : at + 8] = index
    return mask


def page_of(tmp_path, *sheets: Sheet) -> str:
    path = tmp_path / "look.html"
    write_page(path, "a title", "a command", "who may see it", ["what it is of"], sheets)
    return path.read_text(encoding="utf-8")


def images_of(page: str) -> list[np.ndarray]:
    found = re.findall(r'<img src="data:image/png;base64,(.*?)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def sheet_of(truth, masks, dice, *, classes=1, sentence="left", id="a") -> Sheet:
    row = Row("worst" if dice else "", id, sentence, PICTURE, truth, masks, dice)
    figures = {column: np.array([value]) for column, value in dice.items()}
    return Sheet("north", "test", 1, 1, classes, (), list(masks), STUDENT if dice else "", figures, [row])


def test_the_truth_is_an_outline_and_what_is_marked_a_tint(tmp_path):
    mask = square(1, 4)
    page = page_of(tmp_path, sheet_of(mask, {STUDENT: square(1, 20)}, {STUDENT: 0.0}))
    plain, truth, student = images_of(page)
    scale = SMALL // 32
    assert plain.shape == (SMALL, SMALL, 3) and (plain == 100).all()
    assert (truth[4 * scale, 6 * scale] == TRUTH).all() and (truth[8 * scale, 8 * scale] == 100).all()
    tint = np.rint(0.55 * 100 + 0.45 * np.array(PREDICTED))
    assert (student[24 * scale, 24 * scale] == tint).all()
    assert (student[4 * scale, 6 * scale] == TRUTH).all()
    assert "Dice 0.000" in page


@pytest.mark.parametrize("index", [1, 2])
def test_of_several_classes_each_has_its_own_colour(tmp_path, index):
    page = page_of(tmp_path, sheet_of(square(index, 4), {STUDENT: square(index, 4)}, {STUDENT: 1.0}, classes=2))
    _, truth, _ = images_of(page)
    assert (truth[4 * SMALL // 32, 6 * SMALL // 32] == COLOURS[index - 1]).all()


def test_what_is_not_known_is_not_made_up(tmp_path):
    page = page_of(tmp_path, sheet_of(None, {TEXT_MASK: None, STUDENT: square(1, 4)}, {}, sentence=""))
    assert len(images_of(page)) == 2
    assert "no sentence" in page and "nothing to show" in page
    assert "Dice" not in page.split("<h2>")[1]
    empty = page_of(tmp_path, Sheet("south", "val", 0, 0))
    assert "There is nothing to show yet" in empty


def test_text_of_records_is_text(tmp_path):
    hostile = "<script>alert(1)</script>\"'&{{7*7}}"
    page = page_of(tmp_path, sheet_of(None, {STUDENT: square(1, 4)}, {}, sentence=hostile, id=hostile))
    assert "<script" not in page and "{{7*7}}" in page and "&lt;script&gt;" in page


def test_nobody_but_its_owner_reads_it_also_where_another_page_was(tmp_path):
    (tmp_path / "look.html").write_text("older")
    (tmp_path / "look.html").chmod(0o644)
    page_of(tmp_path, Sheet("south", "val", 0, 0))
    assert stat.S_IMODE((tmp_path / "look.html").stat().st_mode) == 0o600
