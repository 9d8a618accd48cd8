"""What is trained on is what lies on the disk: scaled, tiled, packed once, and never half-packed."""

from __future__ import annotations

import os
import time
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from dusss_core.config import ImageConfig
from dusss_core.errors import UserError
from sites import dataset as dataset_module
from sites.prepare import resize_mask, tile_corners
from tests.sites.builders import mask, picture, rows_of, save, site_data

SPLITS = ("train", "train", "val", "test")


@pytest.fixture
def packings(monkeypatch):
    """Counts the pictures that are prepared."""
    prepared = []
    original = dataset_module.prepare
    monkeypatch.setattr(dataset_module, "prepare", lambda *a: prepared.append(1) or original(*a))
    return prepared


def test_a_split_holds_the_pictures_of_the_disk(tmp_path):
    rows = rows_of(tmp_path, 8, SPLITS, height=32, width=32)
    rows[1] |= {"mask": "", "text": ""}
    rows[4] |= {"labelled": "0"}
    for row in rows:
        row.setdefault("labelled", "")
    data = site_data(tmp_path, rows)
    train = data.split("train")
    assert train.ids == ("r0", "r1", "r4", "r5")
    for i, number in enumerate((0, 1, 4, 5)):
        assert np.array_equal(train.images[i, 0], picture(number, 32, 32))
        assert np.array_equal(train.masks[i], (mask(number, 32, 32) > 0) * (number != 1))
    assert train.masked.tolist() == [True, False, True, True]
    assert train.labelled.tolist() == [True, False, False, True]
    assert train.has_text.tolist() == [True, False, True, True]
    for split in (train, data.split("val"), data.split("test")):
        assert split.sentences == ("finding number 0", "finding number 1", "finding number 2")
        for identity, sentence in zip(split.ids, split.sentence, strict=True):
            assert identity == "r1" or split.sentences[sentence] == f"finding number {int(identity[1:]) % 3}"
    assert data.split("val").ids == ("r2", "r6")
    assert data.split("test").images.shape == (2, 1, 32, 32)
    train = {"n_labelled": 2, "n_unlabelled": 2, "n_text": 3, "n_labelled_text": 2}
    assert data.counts == {**train, "n_val": 2, "n_test": 2}


def test_counts_need_no_picture(tmp_path, packings):
    assert site_data(tmp_path, rows_of(tmp_path, 4)).counts["n_labelled"] == 4
    assert not packings


def test_scaling_is_antialiased_and_masks_stay_classes(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[::2] = 255
    rows = rows_of(tmp_path, 1, height=64, width=64)
    save(tmp_path / "images/0.png", stripes)
    split = site_data(tmp_path, rows).split("train")
    assert abs(int(split.images[0, 0, 10, 10]) - 127) < 30
    assert set(np.unique(split.masks).tolist()) == {0, 1}


def test_one_class_masks_are_cut_at_half_the_area():
    values = np.zeros((64, 64), np.uint8)
    values[0, :2] = values[2, 2] = 1  # half of the first cell, a quarter of the next
    scaled = resize_mask(values, 32, classes=1)
    assert scaled[0, 0] == 1
    assert scaled.sum() == 1


def test_several_classes_are_kept_apart():
    values = np.zeros((64, 64), np.uint8)
    values[:, 32:] = 2
    assert set(np.unique(resize_mask(values, 48, classes=3)).tolist()) == {0, 2}


@pytest.mark.parametrize("mode", ["resize", "tile"])
def test_the_cache_gives_what_a_fresh_reading_gives(tmp_path, packings, mode):
    rows = rows_of(tmp_path, 8, SPLITS)
    image = ImageConfig(size=32, mode=mode)
    packed = site_data(tmp_path, rows, image)
    packed.split("train")
    assert len(packings) == 8
    again = site_data(tmp_path, rows, image)
    fresh = site_data(tmp_path, rows, image, cache=False)
    for name in ("train", "val", "test"):
        a, b = again.split(name), fresh.split(name)
        assert a.ids == b.ids
        for left, right in zip([*a.images, *a.masks], [*b.images, *b.masks], strict=True):
            assert np.array_equal(left, right)
    assert len(packings) == 16  # 8 by the first, 8 by the one without a cache, none by the second
    assert isinstance(again.split("train").images, np.memmap)


def test_labels_and_texts_change_without_packing_again(tmp_path, packings):
    rows = rows_of(tmp_path, 8)
    assert site_data(tmp_path, rows).split("train").labelled.sum() == 8
    rows[0]["text"] = "another sentence"
    quarter = site_data(tmp_path, rows, label_fraction=0.25)
    split = quarter.split("train")
    assert split.labelled.sum() == 2
    assert split.masked.all()
    assert split.sentences[split.sentence[0]] == "another sentence"
    assert quarter.counts["n_unlabelled"] == 6
    half = site_data(tmp_path, rows, label_fraction=0.5).split("train")
    assert (half.labelled >= split.labelled).all()
    assert len(packings) == 8


def test_changed_pictures_splits_and_settings_are_packed_again(tmp_path, packings):
    rows = rows_of(tmp_path, 2)
    site_data(tmp_path, rows).split("train")
    save(tmp_path / "images/0.png", picture(99))
    os.utime(tmp_path / "images/0.png", (1, 1))
    assert len(site_data(tmp_path, rows).split("train")) == 2
    assert len(packings) == 4
    site_data(tmp_path, rows, ImageConfig(size=48)).split("train")
    assert len(packings) == 6
    site_data(tmp_path, rows, ImageConfig(size=48, mean=0.1)).split("train")
    assert len(packings) == 6
    rows[1] |= {"split": "val", "patient": ""}
    assert len(site_data(tmp_path, rows).split("train")) == 1


def test_a_mask_that_was_drawn_anew_is_packed_again(tmp_path, packings):
    rows = rows_of(tmp_path, 2, height=32, width=32)
    drawn = save(tmp_path / "masks/0.png", mask(0, 32, 32), compress_level=0)
    before = drawn.stat()
    assert np.array_equal(site_data(tmp_path, rows).split("train").masks[0], mask(0, 32, 32) > 0)
    save(drawn, mask(1, 32, 32), compress_level=0)
    assert drawn.stat().st_size == before.st_size
    os.utime(drawn, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert np.array_equal(site_data(tmp_path, rows).split("train").masks[0], mask(1, 32, 32) > 0)
    # nor is one used that was taken away
    rows[1]["mask"] = ""
    assert site_data(tmp_path, rows).split("train").masked.tolist() == [True, False]
    assert len(packings) == 6


def test_a_killed_packing_leaves_nothing_that_is_used(tmp_path, monkeypatch):
    rows = rows_of(tmp_path, 6)
    original = dataset_module.prepare

    def killed(record, image):
        if record.id == "r4":
            raise KeyboardInterrupt
        return original(record, image)

    monkeypatch.setattr(dataset_module, "prepare", killed)
    with pytest.raises(KeyboardInterrupt):
        site_data(tmp_path, rows).split("train")
    monkeypatch.setattr(dataset_module, "prepare", original)
    assert list((tmp_path / "state/cache").iterdir()) == []
    # what a power cut leaves: a temporary folder, and none that bears the final name
    left = tmp_path / "state/cache/abc.1-2.tmp"
    left.mkdir()
    (left / "images.npy").write_bytes(b"half")
    split = site_data(tmp_path, rows).split("train")
    assert np.array_equal(split.images, site_data(tmp_path, rows, cache=False).split("train").images)
    assert left.exists()  # young: it may belong to another process
    for path in (left / "images.npy", left):
        os.utime(path, (time.time() - 7200,) * 2)
    site_data(tmp_path, rows, ImageConfig(size=48)).split("train")
    assert not left.exists()


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    from sites import packing

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing.os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device\n  -> free disk space"):
        site_data(tmp_path, rows_of(tmp_path, 2)).split("train")
    assert list((tmp_path / "state/cache").iterdir()) == []


def test_absent_splits_have_length_0(tmp_path):
    data = site_data(tmp_path, rows_of(tmp_path, 2))
    assert len(data.split("val")) == 0
    assert data.split("test").images.shape == (0, 1, 32, 32)
    tiled = site_data(tmp_path, rows_of(tmp_path, 2, ("test",)), ImageConfig(size=32, mode="tile"))
    assert len(tiled.split("train")) == len(tiled.split("val")) == 0
    assert len(tiled.split("test")) == 2


@pytest.mark.parametrize(("overlap", "count"), [(0.0, 4), (0.75, 6)])
def test_tiles_cover_the_picture_and_carry_its_sentence_and_label(tmp_path, overlap, count):
    rows = rows_of(tmp_path, 4, ("train", "train", "train", "val"))  # 48 x 40
    rows[1]["text"] = ""
    data = site_data(tmp_path, rows, ImageConfig(size=32, mode="tile", tile_overlap=overlap), label_fraction=0.4)
    train = data.split("train")
    assert len(train) == 3 * count
    rebuilt = np.zeros((3, 48, 40), np.int64)
    seen = np.zeros((3, 48, 40), bool)
    labelled = {}
    for i, identity in enumerate(train.ids):
        name, corner = identity.split("@")
        y, x = map(int, corner.split(","))
        number = int(name[1:])
        rebuilt[number, y : y + 32, x : x + 32] = train.images[i, 0]
        seen[number, y : y + 32, x : x + 32] = True
        assert np.array_equal(train.masks[i], (mask(number) > 0)[y : y + 32, x : x + 32])
        labelled.setdefault(name, set()).add(bool(train.labelled[i]))
        assert train.has_text[i] == (number != 1)
    assert seen.all()
    assert np.array_equal(rebuilt, np.stack([picture(i) for i in range(3)]))
    assert all(len(values) == 1 for values in labelled.values())
    assert sum(values == {True} for values in labelled.values()) == 2  # of 3 pictures, not of the tiles
    whole = data.split("val")
    assert whole.ids == ("r3",)
    assert np.array_equal(whole.images[0][0], picture(3))
    assert np.array_equal(whole.masks[0], mask(3) > 0)
    assert data.counts["n_labelled"] == 2


@pytest.mark.parametrize("length", [20, 32, 33, 64, 65, 100])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.9])
def test_tiles_lie_inside_and_leave_no_gap(length, overlap):
    rows = sorted({y for y, _ in tile_corners(length, 32, 32, overlap)})
    assert rows[0] == 0
    assert rows[-1] == max(0, length - 32)
    assert all(0 < b - a <= 32 for a, b in pairwise(rows))
    corners = tile_corners(length, length, 32, overlap)
    assert len(corners) == len(set(corners))


def test_small_pictures_are_mirrored_to_one_tile(tmp_path):
    rows = rows_of(tmp_path, 1, height=30, width=28)
    split = site_data(tmp_path, rows, ImageConfig(size=32, mode="tile")).split("train")
    assert split.ids == ("r0@0,0",)
    assert np.array_equal(split.images[0, 0, :30, :28], picture(0, 30, 28))
    assert np.array_equal(split.images[0, 0, 30], split.images[0, 0, 29])


def test_whole_pictures_of_several_sizes_stay_apart(tmp_path):
    rows = rows_of(tmp_path, 3, ("test",))
    save(tmp_path / "images/1.png", picture(50, 20, 70, 3))
    save(tmp_path / "masks/1.png", mask(1, 20, 70))
    data = site_data(tmp_path, rows, ImageConfig(size=32, mode="tile", channels=3))
    split = data.split("test")
    assert [image.shape for image in split.images] == [(3, 48, 40), (3, 20, 70), (3, 48, 40)]
    assert np.array_equal(split.images[1], picture(50, 20, 70, 3).transpose(2, 0, 1))
    assert np.array_equal(split.masks[2], mask(2) > 0)


def test_pictures_that_cannot_be_used_are_named_together(tmp_path):
    rows = rows_of(tmp_path, 6)
    save(tmp_path / "masks/1.png", mask(1, 20, 20))
    (tmp_path / "images/3.png").write_bytes(b"no picture")
    Image.fromarray(np.array([[0, 1, 2]] * 48, np.uint8)).resize((40, 48), 0).save(tmp_path / "masks/5.png")
    with pytest.raises(UserError) as caught:
        site_data(tmp_path, rows).split("val")
    said = str(caught.value)
    assert "manifest.csv: 3 problems" in said
    assert "row 3: mask" in said
    assert "20 x 20 pixels" in said
    assert "48 x 40" in said
    assert f"row 5: {tmp_path}/images/3.png: could not be read" in said
    assert "row 7: mask" in said
    assert "holds class 2, the study's largest is 1" in said
    assert list((tmp_path / "state/cache").iterdir()) == []


def test_progress_reaches_the_end(tmp_path):
    seen = []
    data = site_data(tmp_path, rows_of(tmp_path, 5))
    data._progress = lambda done, total: seen.append((done, total))
    data.split("train")
    assert seen == [(i, 5) for i in range(1, 6)]


def test_further_sentences_reach_training_by_number(tmp_path):
    rows = [
        {**row, "text_2": t} for row, t in zip(rows_of(tmp_path, 3), ("second", "", "finding number 0"), strict=True)
    ]
    split = site_data(tmp_path, rows).split("train")
    assert split.sentences == ("finding number 0", "finding number 1", "finding number 2", "second")
    assert split.sentence.tolist() == [0, 1, 2]
    assert split.more.tolist() == [[3], [-1], [0]]
    assert split.select([2, 0]).all_sentences.tolist() == [[2, 0], [0, 3]]
    assert site_data(tmp_path / "b", rows_of(tmp_path / "b", 3)).split("train").more is None
