"""Rows of a split come to the device as they are stored, whether all of it lives there or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dusss_core.training import resident
from dusss_core.training.resident import Resident
from tests.dusss_core.training.strict_device import STRICT, watched

CPU = torch.device("cpu")
ROWS = np.array([5, 0, 5, 3])


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_rows_come_as_they_are_stored(dtype):
    array = np.arange(6 * 2 * 3).reshape(6, 2, 3).astype(dtype)
    rows = Resident(array, CPU).take(ROWS)
    assert torch.equal(rows, torch.from_numpy(array[ROWS]))


def test_an_array_is_copied_whole_piece_by_piece(monkeypatch, tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (7, 3, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "array.npy", array)
    monkeypatch.setattr(resident, "_CHUNK", 2 * array[0].nbytes)
    for given in (array, np.load(tmp_path / "array.npy", mmap_mode="r"), np.broadcast_to(array[:, :1], array.shape)):
        assert torch.equal(resident._copied(given, CPU), torch.from_numpy(np.array(given)))


@pytest.mark.parametrize(("free", "whole"), [(1000, True), (200, False)])
def test_what_does_not_fit_beside_the_training_stays_on_the_host(free, whole, monkeypatch):
    array = np.zeros((6, 4, 4), np.uint8)
    monkeypatch.setattr(resident, "free_memory", lambda device: free)
    with watched():
        kept = Resident(array, STRICT)
        rows = kept.take(ROWS)
    assert kept.on_device == whole
    assert rows.device == STRICT and rows.dtype == torch.uint8 and rows.shape == (4, 4, 4)
