"""The real data sets are what their READMEs say. Skipped where FEDDUSSS_DATA does not name their folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dusss_core.config import ImageConfig
from dusss_core.manifest import read_manifest, write_manifest
from sites.config import SiteConfig
from sites.dataset import SiteData
from sites.importers import ImportOptions, import_lvit
from sites.partition import PartitionConfig, partition, write_sites

pytestmark = pytest.mark.real_data


@pytest.fixture
def root() -> Path:
    folder = os.environ.get("FEDDUSSS_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FEDDUSSS_DATA does not name the folder of the real data sets")
    return Path(folder)


def site_data(manifest: Path, state: Path, **image) -> SiteData:
    return SiteData(SiteConfig(site="real", data={"manifest": manifest}, state_dir=state), ImageConfig(**image))


def test_qata_becomes_three_sites_and_an_official_test(root, tmp_path):
    records = read_manifest(root / "qata_cov19/manifest.csv")
    assert len(records) == 9250
    config = PartitionConfig(
        by="column",
        column="family",
        divide={"cxr": {"into": 2, "by": "patient"}},
        official_test=True,
        hold_out={"val": 0.1, "test": 0.15},
        subset={"train": 300, "val": 40, "test": 50},
        label_fraction=0.25,
    )
    sites = partition(records, config)
    assert list(sites) == ["covid", "cxr_1", "cxr_2", "official_test"]
    write_sites(tmp_path, sites)
    data = site_data(tmp_path / "cxr_1/manifest.csv", tmp_path / "state", size=112)
    train = data.split("train")
    assert train.images.shape[1:] == (1, 112, 112)
    assert 60 < train.images.mean() < 200
    assert 0.05 < train.masks.mean() < 0.3
    assert train.has_text.all()
    assert 0.2 < train.labelled.mean() < 0.3
    assert len(data.split("test")) > 5
    assert len(site_data(tmp_path / "official_test/manifest.csv", tmp_path / "state", size=112).split("test")) == 50


def test_left_in_the_text_is_left_in_the_picture(root, tmp_path):
    records = [r for r in read_manifest(root / "qata_cov19/manifest.csv") if r.text.startswith("unilateral")]
    write_manifest(tmp_path / "m.csv", [r for r in records if r.split == "train"][:200])
    train = site_data(tmp_path / "m.csv", tmp_path / "state", size=64).split("train")
    column = (train.masks * np.arange(64)).sum((1, 2)) / np.maximum(train.masks.sum((1, 2)), 1)
    left = np.array(["left lung" in train.sentences[i] for i in train.sentence])
    right = np.array(["right lung" in train.sentences[i] for i in train.sentence])
    assert left.sum() > 20
    assert right.sum() > 20
    assert column[left].mean() < 24 < 40 < column[right].mean()


def test_monuseg_becomes_hospitals_and_tiles(root, tmp_path):
    folder = root / "monuseg"
    options = ImportOptions(out=tmp_path / "m.csv", columns=folder / "hospitals.csv", key="slide")
    result = import_lvit(folder, options)
    assert len(result.records) == 30
    assert result.warnings == []
    config = PartitionConfig(by="column", column="hospital", keep_splits=False, hold_out={"test": 0.3})
    sites = partition(read_manifest(tmp_path / "m.csv"), config)
    assert len(sites) == 7
    write_sites(tmp_path / "sites", sites)
    data = site_data(tmp_path / "sites/ontario/manifest.csv", tmp_path / "state", size=256, channels=3, mode="tile")
    assert data.split("train").images.shape == (48, 3, 256, 256)
    assert {image.shape for image in data.split("test").images} == {(3, 1000, 1000)}


@pytest.mark.parametrize(("name", "n"), [("cxr_multisite", 111), ("dsb2018_nuclei", 664)])
def test_other_data_sets_are_read_whole(root, tmp_path, name, n):
    data = site_data(root / name / "manifest.csv", tmp_path, size=64, channels=3)
    splits = [data.split(split) for split in ("train", "val", "test")]
    assert sum(map(len, splits)) == n
    assert all(0.01 < split.masks.mean() < 0.6 for split in splits)
