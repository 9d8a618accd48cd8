"""Pictures that are tested on once, at the end, are nobody's test pictures before."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.grid.cell import Cell
from benchmarks.grid.trial import make_study
from benchmarks.grid.unread import SEEDS, unread_records
from dusss_core.errors import UserError
from dusss_core.manifest import Record, read_manifest, write_manifest
from sites.partition import OFFICIAL_TEST, partition
from tests.benchmarks.conftest import empty_picture


@pytest.fixture
def data(tmp_path) -> Path:
    """A manifest like QaTa-COV19's, of few pictures."""
    picture = empty_picture(tmp_path / "qata_cov19")
    records = [
        Record(f"{split}_{i}", image=picture, mask=picture, split=split, extra={"family": family})
        for split, n in (("train", 60), ("test", 2000))
        for i in range(n)
        for family in ("covid" if i % 2 else "cxr",)
    ]
    write_manifest(tmp_path / "qata_cov19" / "manifest.csv", records)
    return tmp_path


def _study(data, seed, dataset="qata"):
    return make_study(Cell(dataset, 0.05, "dusss", "centralized", "cpu", seed), data)


def test_no_cell_draws_them(data):
    unread = {record.id for record in unread_records(_study(data, 1), data)}
    records = read_manifest(data / "qata_cov19" / "manifest.csv")
    for seed in SEEDS:
        config = _study(data, seed).simulation.partition
        drawn = {record.id for record in partition(records, config, seed)[OFFICIAL_TEST]}
        assert len(drawn) == 500 and not unread & drawn
    assert 500 < len(unread) < 1500 and all(name.startswith("test_") for name in unread)


def test_another_seed_leaves_its_own_out_too(data):
    usual, other = (unread_records(_study(data, seed), data) for seed in (2, 9))
    assert {record.id for record in other} < {record.id for record in usual}


def test_a_data_set_that_is_tested_on_as_a_whole_has_none(data):
    with pytest.raises(UserError, match="every test picture"):
        unread_records(_study(data, 1, "monuseg"), data)
