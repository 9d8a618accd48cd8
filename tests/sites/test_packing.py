"""A pack is whole, or it is made anew."""

from __future__ import annotations

import multiprocessing
import shutil
import sys

import numpy as np
import pytest

from sites import packing
from sites.packing import KEPT_PACKS, load_or_build


def build(builder):
    array = builder.add_array("numbers", (3,))
    array.append(np.array([[1, 2, 3]], np.uint8))
    builder.index["n"] = 1


def test_half_a_pack_under_its_name_is_made_anew(tmp_path):
    half = tmp_path / "digest"
    half.mkdir()
    (half / "numbers.npy").write_bytes(b"cut off")
    pack = load_or_build(tmp_path, "digest", build)
    assert pack.arrays["numbers"].tolist() == [[1, 2, 3]] and pack.index == {"n": 1}


@pytest.mark.parametrize("half", [False, True])
def test_the_pack_of_a_process_that_was_faster_is_used_and_stays(tmp_path, half):
    found = []

    def slowly(builder):
        build(builder)
        load_or_build(tmp_path, "digest", build)
        found.append((tmp_path / "digest").stat().st_ino)

    if half:
        (tmp_path / "digest").mkdir()
        (tmp_path / "digest/numbers.npy").write_bytes(b"cut off")
    pack = load_or_build(tmp_path, "digest", slowly)
    assert pack.arrays["numbers"].tolist() == [[1, 2, 3]]
    assert found == [(tmp_path / "digest").stat().st_ino]
    assert [path.name for path in tmp_path.iterdir()] == ["digest"]


def test_a_pack_that_is_dropped_before_it_is_loaded_is_made_once_more(tmp_path, monkeypatch):
    built, drop = [], packing._drop_old
    monkeypatch.setattr(packing, "_drop_old", lambda cache, but: drop(cache, but) if built[1:] else shutil.rmtree(but))
    pack = load_or_build(tmp_path, "digest", lambda builder: (built.append(1), build(builder)))
    assert pack.arrays["numbers"].tolist() == [[1, 2, 3]] and len(built) == 2


def test_a_pack_that_is_being_dropped_is_no_pack_any_more(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(shutil, "rmtree", lambda folder, **_: seen.append(sorted(p.name for p in folder.glob("*"))))
    for number in range(KEPT_PACKS + 1):
        load_or_build(tmp_path, f"{number:032x}", build)
    assert [names for names in seen if names] == [["numbers.npy"]]


def prepare(cache, barrier, failures):
    """Load several packs, at the same time as other processes."""
    for number in range(12):
        barrier.wait(60)
        try:
            pack = load_or_build(cache, f"{number:032x}", build)
            assert pack.arrays["numbers"].tolist() == [[1, 2, 3]] and pack.index == {"n": 1}
        except BaseException as error:
            failures.put(repr(error))


@pytest.mark.skipif(sys.platform != "linux", reason="starts processes by fork")
def test_processes_that_prepare_the_same_pictures_at_once_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, failures = context.Barrier(4), context.SimpleQueue()
    processes = [context.Process(target=prepare, args=(tmp_path, barrier, failures)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in processes] == [0] * 4


@pytest.mark.parametrize("name", ["images.npy", "index.json"])
@pytest.mark.parametrize("kept", [0, 0.7])
def test_a_pack_that_was_cut_off_is_made_anew(tmp_path, name, kept):
    def build(builder):
        builder.add_array("images", (4,)).append(np.arange(40, dtype=np.uint8).reshape(10, 4))
        builder.index["names"] = list("abcdefghij")

    first = load_or_build(tmp_path, "0" * 32, build).arrays["images"].copy()
    file = tmp_path / ("0" * 32) / name
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * kept)])
    assert np.array_equal(load_or_build(tmp_path, "0" * 32, build).arrays["images"], first)
    assert file.stat().st_size > 0


def test_what_a_site_keeps_of_its_text_is_made_anew_where_it_was_cut_off(tmp_path):
    from client.work.workbench import _kept_file

    first = _kept_file(tmp_path, "text-masks", "0", lambda: np.arange(100)).copy()
    file = tmp_path / "text-masks-0.npy"
    file.write_bytes(file.read_bytes()[:200])
    assert np.array_equal(_kept_file(tmp_path, "text-masks", "0", lambda: np.arange(100)), first)
