"""The measure of stability looks at other wordings of the same pictures, and the page shows what was measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import wording
from dusss_core.errors import UserError
from tests.dusss_core.conftest import make_split

RESULT = {
    "name": "with <SSS>",
    "pictures": 12,
    "agreement": 0.9,
    "quantiles": [i / 20 for i in range(21)],
    "dice": {"sentence": 0.8, "wordings": 0.75},
    "spread": 0.01,
}


def test_pictures_keep_their_place_and_get_another_wording_of_their_own_sentence():
    split = make_split()
    said = ("Bilateral pulmonary infection, two infected areas, upper left lung and lower right lung.", "?")
    split = replace(split, sentences=said, sentence=np.arange(len(split)) % 2, masked=np.ones(len(split), bool))
    kept = wording._with_other_wordings(split, 3)
    assert 0 < len(kept) < len(split)
    assert set(kept.sentence) == {0}  # nothing else can be said for "?"
    heard = {wording._worded(kept, number).sentences[0] for number in range(4)}
    assert len(heard) == 4
    assert wording._worded(kept, 0).sentences == said
    assert all("left" in sentence and "right" in sentence for sentence in heard)


def test_the_page_holds_the_table_between_its_markers_and_escapes_names(tmp_path):
    page, chart = tmp_path / "results.md", tmp_path / "images" / "wording.svg"
    page.write_text(f"before\n{wording.BEGIN}\nold\n{wording.END}\nafter\n")
    wording.write_page([RESULT], page, chart)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| with <SSS> | 12 | 90.0 | 80.0 | 75.0 | 1.0 |" in text
    assert "<SSS>" not in chart.read_text()
    page.write_text("no marker")
    with pytest.raises(UserError, match="lacks a marker"):
        wording.write_page([RESULT], page, chart)
    with pytest.raises(UserError, match="no results"):
        wording.write_page([], page, chart)
