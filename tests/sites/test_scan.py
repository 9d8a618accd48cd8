"""A check streams: what it saw is kept, one that was broken off goes on, and only changed files are read again."""

from __future__ import annotations

import importlib
import os
import stat

import numpy as np
import pytest

from dusss_core.manifest import Record, read_manifest
from sites.check import check_site
from sites.check.duplicates import near_pairs
from sites.check.look import LOOK, look_at
from sites.check.scan import scan
from tests.sites.builders import mask, save
from tests.sites.faults import clean, picture_of

scanning = importlib.import_module("sites.check.scan")  # the package has a function of that name


@pytest.fixture
def records(tmp_path):
    clean(tmp_path).write()
    return read_manifest(tmp_path / "manifest.csv")[:100]


class Broken(Exception):
    pass


def breaking(after):
    def progress(done, total):
        if done >= after:
            raise Broken

    return progress


def test_what_a_check_keeps_is_for_its_owner_alone(tmp_path):
    """It is the first thing that writes into a site's state, and what other things keep there lies behind it."""
    site_file = clean(tmp_path).write()
    before = os.umask(0o022)
    try:
        check_site(site_file)
    finally:
        os.umask(before)
    (looks,) = tmp_path.rglob("looks")
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (looks.parent, looks.parent.parent)] == [0o700] * 2


def quiet(done, total):
    pass


def test_a_scan_that_was_broken_off_goes_on(tmp_path, records, monkeypatch):
    whole = scan(records, None, quiet)
    with pytest.raises(Broken):
        scan(records, tmp_path / "state", breaking(64), workers=1)
    with (tmp_path / "state/looks").open("ab") as file:
        file.write(b"half a record")
    looked = []
    monkeypatch.setattr(scanning, "look_at", lambda record: looked.append(record.id) or look_at(record))
    again = scan(records, tmp_path / "state", quiet)
    assert again.known == 64
    assert len(looked) == len(records) - 64
    assert np.array_equal(again.looks, whole.looks)


def test_only_what_changed_is_read_again(tmp_path, records, monkeypatch):
    scan(records, tmp_path / "state", quiet)
    save(records[3].image, picture_of(999))
    os.utime(records[5].mask, (1, 1))
    looked = []
    monkeypatch.setattr(scanning, "look_at", lambda record: looked.append(record.id) or look_at(record))
    again = scan(records, tmp_path / "state", quiet)
    assert looked == [records[3].id, records[5].id]
    assert np.array_equal(again.looks, scan(records, None, quiet).looks)
    assert scan(records, tmp_path / "state", quiet, fresh=True).known == 0


def test_what_could_not_be_read_is_remembered(tmp_path, records):
    records[2].image.write_bytes(b"nothing")
    first, second = (scan(records, tmp_path / "state", quiet) for _ in range(2))
    assert second.known == len(records)
    assert first.problems == second.problems
    assert list(second.problems) == [2]


def test_processes_see_what_threads_see(tmp_path, records, monkeypatch):
    one = scan(records, None, quiet, workers=1)
    monkeypatch.setattr(scanning, "FEW", 10)
    several = scan(records, None, quiet, workers=2)
    assert np.array_equal(one.looks, several.looks)


def test_a_scan_holds_no_picture(records):
    """A thousand bytes a record, whatever a picture's size."""
    assert LOOK.itemsize < 1000


def test_a_folder_that_can_not_be_written_is_no_obstacle(tmp_path, records):
    (tmp_path / "file").write_text("")
    assert scan(records, tmp_path / "file/state", quiet).known == 0


@pytest.mark.parametrize("variant", range(8))
def test_near_duplicates_are_found_however_they_lie(tmp_path, variant):
    pixels = picture_of(1, 96)
    moved = np.rot90(pixels, variant % 4)[:, :: -1 if variant > 3 else 1]
    files = [save(tmp_path / "a.png", pixels), save(tmp_path / "b.jpg", np.ascontiguousarray(moved), quality=80)]
    files += [save(tmp_path / f"{i}.png", picture_of(i, 96)) for i in range(2, 40)]
    looks = np.array([look_at(Record(file.name, file)).look for file in files])
    assert near_pairs(looks) == [(0, 1)]


def test_the_same_shape_in_many_masks_is_not_a_warning(tmp_path):
    folder = clean(tmp_path)
    for i in range(len(folder.rows)):
        save(folder.mask(i), mask(i, 64, 64))
        folder.rows[i]["text"] = "dense area, patchy"
    report = check_site(folder.write(), progress=quiet)
    assert {f.level for f in report.findings if f.kind == "shared_mask"} == {"note"}
