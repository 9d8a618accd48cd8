"""What rules read from sentences: every sentence of the real data sets and of the synthetic hospitals."""

from __future__ import annotations

import csv
import itertools
import os
from pathlib import Path

import pytest

from dusss_core.text.wording import mirror, wordings
from dusss_core.text.zones import ROWS, SIDES, ZONES, reading_of
from sites.synth.text import sentence

LEFT, RIGHT = ([(row, side) for row in ROWS] for side in SIDES)
READ = {
    "Bilateral pulmonary infection, two infected areas, upper middle left lung and all right lung.": (
        {("upper", "left"), ("middle", "left"), *RIGHT},
        {"bilateral", "2"},
    ),
    "Both-sided lung infection, one area, lower left lung.": ({("lower", "left")}, {"bilateral", "1"}),
    "both sided infection": (set(), {"bilateral"}),
    "unilateral pulmonary infection, six infected areas, left lung.": ({*LEFT}, {"unilateral", "5+"}),
    "left lung upper and middle zones show consolidation.": ({("upper", "left"), ("middle", "left")}, set()),
    "left lung lower zone and right lung upper zone show it.": ({("lower", "left"), ("upper", "right")}, set()),
    "Heart size is normal. There is an opacity in the upper zone of the left lung. No pleural effusion in the right.": (
        {("upper", "left")},
        set(),
    ),
    "neither lung shows an opacity.": (set(), set()),
    "both lungs are free of infection": (set(), set()),
    "Opacities in both lungs.": (set(ZONES), set()),
    "Infected area in the left lower lobe; no pleural effusion.": ({("lower", "left")}, set()),
    "Opacity in the RUL.": ({("upper", "right")}, set()),
    "The nuclei density in the upper right is high.": ({("upper", "right")}, {"high"}),
    "The nuclei density in the lower is high.": ({("lower", "left"), ("lower", "right")}, {"high"}),
    "The nuclei density in the left is high.": ({*LEFT}, {"high"}),
    "The nuclei density is higher around.": (set(), {"high", "around"}),
    "The nuclei are irregularly distributed.": (set(), {"irregularly"}),
    "": (set(), set()),
}


@pytest.mark.parametrize("text", READ)
def test_zones_and_words_are_read(text):
    reading, (zones, words) = reading_of(text), READ[text]
    assert (set(reading.zones), reading.words) == (zones, words)


def test_each_zone_has_the_words_that_name_it():
    text = "two areas, upper middle left lung and all right lung."
    zones = reading_of(text).zones
    named = {zone: " ".join(text[start:end] for start, end in spans) for zone, spans in zones.items()}
    assert named == {
        ("upper", "left"): "upper left lung",
        ("middle", "left"): "middle left lung",
        **{(row, "right"): "all right lung" for row in ROWS},
    }


def test_another_wording_names_the_same_zones_and_words():
    sentence = "Bilateral pulmonary infection, two areas, upper left lung and all right lung."
    readings = {str((sorted(r.zones), sorted(r.words))) for r in map(reading_of, [sentence, *wordings(sentence, 12)])}
    assert any("oth-sided" in wording for wording in wordings(sentence, 12)) and len(readings) == 1


def mirrored(zones):
    return {(row, {"left": "right", "right": "left"}[side]) for row, side in zones}


def test_a_mirrored_sentence_names_the_mirrored_zones():
    for text in READ:
        assert set(reading_of(mirror(text)).zones) == mirrored(reading_of(text).zones)
        assert reading_of(mirror(text)).words == reading_of(text).words


def test_every_sentence_of_the_synthetic_hospitals_names_its_findings_and_nothing_else():
    cells = [(side, row) for side in SIDES for row in ROWS]
    texts = {}
    for count in (0, 1, 2):
        for findings in itertools.combinations(cells, count):
            for wording, seed in itertools.product(("terse", "zonal", "report", "plain"), range(12)):
                text = sentence(wording, findings, 5.5 + seed % 3, (seed,))
                texts[text] = {(row, side) for side, row in findings}
    assert len(texts) > 300
    assert [text for text, zones in texts.items() if set(reading_of(text).zones) != zones] == []


# ---- real data ----


def folder(name):
    root = os.environ.get("FEDDUSSS_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"FEDDUSSS_DATA names no folder with {name}")
    return Path(root) / name


def test_every_sentence_of_qata_is_read():
    with (folder("qata_cov19") / "manifest.csv").open(encoding="utf-8") as file:
        texts = {row["text"] for row in csv.DictReader(file)}
    assert len(texts) == 167
    numbers = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5+", "six": "5+"}
    for text in texts:
        # they have one form: EXTENT pulmonary infection, NUMBER infected areas, ROWS SIDE lung and ROWS SIDE lung.
        extent, number, places = text.rstrip(".").split(", ", 2)
        zones = set()
        for place in places.split(" and "):
            *rows, side, _ = place.split()
            if side == "all":  # "all lung and all right lung": one sentence lacks a side
                side, rows = "left", ["all"]
            rows = ROWS if "all" in rows or not rows else rows
            zones |= {(row, side) for row in rows}
        reading = reading_of(text)
        assert set(reading.zones) == zones, text
        assert reading.words == {extent.split()[0], numbers[number.split()[0]]}, text
        assert set(reading_of(mirror(text)).zones) == mirrored(zones), text


def test_every_sentence_of_monuseg_is_read():
    import openpyxl

    texts = set()
    for part in ("Train", "Val"):
        book = openpyxl.load_workbook(folder("monuseg") / f"{part}_Folder" / f"{part}_text.xlsx", read_only=True)
        texts |= {row[1] for row in book.active.iter_rows(min_row=2, values_only=True)}
    assert len(texts) == 11
    for text in texts:
        reading = reading_of(text)
        assert reading.words, text
        placed = " in the " in text
        assert bool(reading.zones) == placed == ("density in" in text), text
        words = set(text.rstrip(".").split())
        rows, sides = words & set(ROWS) or set(ROWS), words & set(SIDES) or set(SIDES)
        assert not placed or set(reading.zones) == set(itertools.product(rows, sides)), text


def test_left_in_qata_is_the_pictures_left_and_zones_end_where_its_masks_do():
    """The defaults of `pretrain.zones` were measured on the official training split."""
    import numpy as np
    from PIL import Image

    from dusss_core.config import ZonesConfig

    root, settings = folder("qata_cov19"), ZonesConfig()
    with (root / "manifest.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    there, in_zone = [], {row: [] for row in ROWS}
    edges = dict(zip(ROWS, itertools.pairwise((0.0, settings.upper_until, settings.lower_from, 1.0)), strict=True))
    for row in rows[::8]:
        zones = reading_of(row["text"]).zones
        if len({side for _, side in zones}) != 1:
            continue
        mask = np.asarray(Image.open(root / row["mask"]).convert("L")) > 0
        if not mask.any():
            continue
        (side,) = {side for _, side in zones}
        left = mask[:, : mask.shape[1] // 2].sum() / mask.sum()
        there.append((left > 0.5) == (side == settings.left))
        if len(zones) == 1:
            (named,) = {named for named, _ in zones}
            start, end = (int(edge * len(mask)) for edge in edges[named])
            in_zone[named].append(mask[start:end].sum() / mask.sum())
    assert len(there) > 100 and np.mean(there) > 0.95
    assert all(np.mean(shares) > 0.5 for shares in in_zone.values() if len(shares) > 4)
