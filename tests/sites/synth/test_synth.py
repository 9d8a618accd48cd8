from __future__ import annotations

import itertools
import time
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from dusss_core.errors import UserError
from dusss_core.manifest import read_manifest
from dusss_core.seeds import unit_hash
from feddusss import configfile
from sites.synth.config import DiseaseConfig, ScannerConfig, SynthConfig
from sites.synth.hospitals import write_hospitals
from sites.synth.picture import CELLS, draw
from sites.synth.text import sentence

WORDINGS = ("terse", "zonal", "report", "plain")
SMALL = {"train": 30, "val": 8, "test": 12, "label_fraction": 0.2}


def small(names=("alpha", "beta"), **settings) -> SynthConfig:
    hospitals = [{"name": n, **SMALL, "wording": w} for n, w in zip(names, itertools.cycle(WORDINGS), strict=False)]
    return SynthConfig(hospitals=hospitals, **settings)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    """Records by hospital, two of each wording and look."""
    config = small("abcd")
    manifests = write_hospitals(tmp_path_factory.mktemp("synth"), config, seed=7)
    return [read_manifest(manifest) for manifest in manifests]


def cells_of(column: str) -> set[tuple[str, str]]:
    return {tuple(words.split()) for words in column.split("; ")} if column else set()


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def bytes_below(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_seed_gives_the_same_bytes_and_another_seed_other_pictures(tmp_path):
    for folder, seed in (("one", 3), ("two", 3), ("other", 4)):
        write_hospitals(tmp_path / folder, small(("alpha",)), seed)
    one, two, other = (bytes_below(tmp_path / folder) for folder in ("one", "two", "other"))
    assert one == two
    pictures = [name for name in one if "images" in name]
    assert len(pictures) == 50
    assert all(one[name] != other[name] for name in pictures)


def test_a_hospital_does_not_depend_on_which_others_are_written(tmp_path):
    write_hospitals(tmp_path / "pair", small(("alpha", "beta")), 1)
    write_hospitals(tmp_path / "alone", small(("alpha",)), 1)
    assert bytes_below(tmp_path / "pair" / "alpha") == bytes_below(tmp_path / "alone" / "alpha")


def test_pictures_are_grey_and_masks_are_black_and_white(hospitals):
    for record in itertools.chain(*hospitals):
        image, mask = pixels(record.image), pixels(record.mask)
        assert image.shape == mask.shape == (64, 64)
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        assert image.std() > 15


def test_splits_have_the_counts_asked_for_and_no_patient_is_in_two(hospitals):
    for records in hospitals:
        assert [sum(r.split == s for r in records) for s in ("train", "val", "test")] == [30, 8, 12]
        splits, sizes = defaultdict(set), defaultdict(int)
        for record in records:
            splits[record.patient].add(record.split)
            sizes[record.patient] += 1
        assert all(len(found) == 1 for found in splits.values())
        assert set(sizes.values()) == {1, 2, 3}


def test_the_labelled_are_the_first_by_hash_of_the_id(hospitals):
    for records in hospitals:
        train = [r for r in records if r.split == "train"]
        by_hash = sorted(train, key=lambda r: unit_hash("label", r.id))
        assert {r.id for r in train if r.labelled} == {r.id for r in by_hash[:6]}
        assert all(r.labelled for r in records if r.split != "train")
        assert all(r.mask is not None for r in records)


def test_the_share_without_text_is_as_asked(tmp_path, hospitals):
    assert [sum(not r.text for r in records) for records in hospitals] == [5, 5, 5, 5]
    config = small(("alpha",), text_missing=0.5)
    config.hospitals[0].text_missing = 0.0
    (manifest,) = write_hospitals(tmp_path, config, 1)
    assert all(r.text for r in read_manifest(manifest))


def test_the_mask_lies_where_the_columns_say(hospitals):
    """In each named cell and in no other: cells are halves by side, thirds of the lungs by zone."""
    edges = {"upper": (0, 26), "middle": (20, 44), "lower": (36, 64)}
    for record in itertools.chain(*hospitals):
        mask, named = pixels(record.mask) > 0, cells_of(record.extra["finding_zones"])
        assert len(named) == int(record.extra["n_findings"]) in (1, 2)
        explained = np.zeros_like(mask)
        for side, zone in named:
            columns = slice(0, 34) if side == "left" else slice(30, 64)
            window = (slice(*edges[zone]), columns)
            assert mask[window].sum() > 30, record.id
            explained[window] = True
        assert mask[~explained].sum() <= 0.1 * mask.sum(), record.id
        if len(named) == 1:
            ((side, zone),) = named
            y, x = np.argwhere(mask).mean(axis=0)
            assert (x < 32) == (side == "left")
            assert zone == ("upper" if y < 24 else "middle" if y < 40 else "lower")
        sides = {side for side, _ in named}
        assert record.extra["finding_side"] == ("both" if len(sides) == 2 else sides.pop())


def test_no_look_alike_lies_in_a_named_zone_and_there_are_look_alikes(hospitals):
    for record in itertools.chain(*hospitals):
        findings, others = cells_of(record.extra["finding_zones"]), cells_of(record.extra["distractor_zones"])
        assert not findings & others
        assert 2 <= len(others) <= 4
        assert findings | others <= set(CELLS)


def test_place_alone_does_not_tell_findings_from_look_alikes():
    config, disease = SynthConfig(size=32), DiseaseConfig(upper=3.0)
    drawings = [draw(config, disease, ScannerConfig(), patient=(2, i), record=(2, i)) for i in range(400)]
    for cell in CELLS:
        finding = sum(cell in drawing.findings for drawing in drawings)
        other = sum(cell in drawing.distractors for drawing in drawings)
        # 1.3 findings and 3 look-alikes per picture, from the same weights
        assert 0.20 < finding / (finding + other) < 0.42, cell


def test_sentences_name_the_places_of_the_finding_and_no_other(hospitals):
    for record in itertools.chain(*hospitals):
        if record.text:
            named = cells_of(record.extra["finding_zones"])
            assert places_in(record.text) == named, record.text


@pytest.mark.parametrize("wording", WORDINGS)
def test_every_wording_tells_every_pair_of_places_apart(wording):
    choices = [*itertools.combinations(CELLS, 1), *itertools.combinations(CELLS, 2)]
    for findings in choices:
        for number in range(8):
            assert places_in(sentence(wording, findings, 5.0, (1, "a", number))) == set(findings)
    assert places_in(sentence(wording, (), 0.0, (1, "a", 0))) == set()


def places_in(text: str) -> set[tuple[str, str]]:
    """Cells that a sentence names: each zone word, with the side word nearest to it."""
    words = [w.strip(".,") for w in text.split()]
    zones = [(i, w) for i, w in enumerate(words) if w in ("upper", "middle", "lower")]
    sides = [(i, w) for i, w in enumerate(words) if w in ("left", "right")]
    return {(min(sides, key=lambda side: abs(side[0] - i))[1], zone) for i, zone in zones}


def test_hospitals_word_and_look_differently(hospitals):
    texts = [{r.text for r in records if r.text} for records in hospitals]
    assert all(not a & b for a, b in itertools.combinations(texts, 2))
    config = SynthConfig(hospitals=6)
    assert len({h.scanner.model_dump_json() for h in config.hospitals}) == 6
    assert len({h.disease.model_dump_json() for h in config.hospitals}) == 6


def test_normal_pictures_have_an_empty_mask_and_say_so(tmp_path):
    (manifest,) = write_hospitals(tmp_path, small(("alpha",), normal=0.2, text_missing=0.0), 1)
    records = read_manifest(manifest)
    normal = [r for r in records if r.extra["n_findings"] == "0"]
    assert len(normal) == 10
    assert all(not pixels(r.mask).any() and r.text.startswith("no pulmonary") for r in normal)
    assert all(r.extra["finding_side"] == "none" and r.extra["distractor_zones"] for r in normal)


def test_larger_pictures_show_the_same_world(tmp_path):
    (manifest,) = write_hospitals(tmp_path, small(("alpha",), size=96), 7)
    shares = [(pixels(r.mask) > 0).mean() for r in read_manifest(manifest)]
    assert pixels(read_manifest(manifest)[0].image).shape == (96, 96)
    assert 0.015 < np.mean(shares) < 0.06


@pytest.mark.parametrize("n", [1, 3, 14])
def test_a_number_makes_that_many_hospitals(n):
    config = SynthConfig(hospitals=n)
    assert len({hospital.name for hospital in config.hospitals}) == n
    assert SynthConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"hospitals": [{"name": "a"}, {"name": "A"}]}, "two are named"),
        ({"hospitals": [{"name": "a", "scaner": {}}]}, "did you mean 'scanner'"),
        ({"hospitals": 0}, "hospitals"),
        ({"hospitals": -1}, "'hospitals': -1 hospitals: from 1 to 1000"),
        ({"hospitals": 1001}, "'hospitals': 1001 hospitals: from 1 to 1000"),
        ({"distractors_min": 3, "distractors_max": 2}, "distractors_min"),
        ({"hospitals": [{"name": "../a"}]}, "name"),
    ],
)
def test_a_wrong_config_is_refused_with_the_key(values, told):
    with pytest.raises(UserError, match=told):
        configfile.parse(SynthConfig, values, "synth.yaml")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "alpha").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="alpha"):
        write_hospitals(tmp_path, small(("alpha",)), 1)


def test_pictures_are_made_fast(tmp_path):
    started = time.process_time()
    write_hospitals(tmp_path, SynthConfig(hospitals=[{"name": "a", "train": 100, "val": 0, "test": 0}]), 1)
    assert time.process_time() - started < 3, "1000 pictures should take less than 10 s, and a slow machine some more"
