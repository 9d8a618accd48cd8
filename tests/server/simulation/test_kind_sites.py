"""`kind: sites` simulates what `partition` wrote: the same records at the same sites; theirs is not touched."""

from __future__ import annotations

import pytest

from dusss_core.errors import UserError
from dusss_core.manifest import read_manifest
from server.simulation.materialise import materialise
from server.study.config import load_study
from sites.__main__ import main
from sites.config import load_site
from tests.server.conftest import make_study
from tests.sites.builders import rows_of, write_rows


@pytest.fixture
def partitioned(tmp_path):
    manifest = write_rows(tmp_path / "data/manifest.csv", rows_of(tmp_path / "data", 24))
    options = ["--set", "sites=3", "--set", "hold_out.test=0.2", "--set", "label_fraction=0.5"]
    assert main(["partition", str(manifest), "--out", str(tmp_path / "data/sites"), *options]) == 0
    return tmp_path / "data"


def study_of(folder, **simulation):
    values = {"data": {"kind": "sites", "path": "sites"}, **simulation}
    return make_study(data={"root": str(folder)}, simulation=values)


def facts(manifest):
    return [(r.id, r.image, r.mask, r.text, r.split, r.patient, r.labelled) for r in read_manifest(manifest)]


def test_the_sites_are_those_that_were_partitioned(tmp_path, partitioned):
    before = sorted(path for path in (partitioned / "sites").rglob("*"))
    files = materialise(study_of(partitioned), tmp_path / "run")
    assert [file.parent.name for file in files] == ["site_1", "site_2", "site_3"]
    for file in files:
        assert facts(file.parent / "manifest.csv") == facts(partitioned / "sites" / file.parent.name / "manifest.csv")
    assert sorted(path for path in (partitioned / "sites").rglob("*")) == before


def test_what_a_site_does_not_allow_is_not_simulated(tmp_path, partitioned):
    file = partitioned / "sites/site_2/site.yaml"
    file.write_text(file.read_text() + "limits: {text: false, splits: [train]}\n")
    materialise(study_of(partitioned), tmp_path / "run")
    records = read_manifest(tmp_path / "run/sites/site_2/manifest.csv")
    assert {record.split for record in records} == {"train"}
    assert {record.text for record in records} == {""}


def test_a_sites_own_budget_is_not_passed_over_in_silence(tmp_path, partitioned):
    file = partitioned / "sites/site_2/site.yaml"
    file.write_text(file.read_text() + "privacy: {epsilon: 3, records: 14}\n")
    with pytest.raises(UserError, match=r"site_2/site\.yaml: trains with differential privacy"):
        materialise(study_of(partitioned), tmp_path / "run")
    materialise(study_of(partitioned, privacy={"epsilon": None}), tmp_path / "run")
    assert load_site(tmp_path / "run/sites/site_2/site.yaml").privacy.epsilon is None


def test_sites_are_made_anew_when_one_of_them_has_changed(tmp_path, partitioned):
    materialise(study_of(partitioned), tmp_path / "run")
    manifest = partitioned / "sites/site_1/manifest.csv"
    manifest.write_text(manifest.read_text().replace("finding number 0", "finding number nought"))
    materialise(study_of(partitioned), tmp_path / "run")
    assert "nought" in (tmp_path / "run/sites/site_1/manifest.csv").read_text()


def test_a_folder_without_sites_says_what_makes_one(tmp_path):
    (tmp_path / "sites").mkdir()
    with pytest.raises(UserError, match="sites partition"):
        materialise(study_of(tmp_path), tmp_path / "run")


def test_two_sites_of_one_name_are_an_error_and_none_takes_the_others_place(tmp_path, partitioned):
    file = partitioned / "sites/site_2/site.yaml"
    file.write_text(file.read_text().replace("site: site_2", "site: site_1"))
    with pytest.raises(UserError, match=r"site_2/site\.yaml: its site has the name of that in .*site_1/site\.yaml"):
        materialise(study_of(partitioned), tmp_path / "run")
    assert not (tmp_path / "run/sites").exists()


def test_a_partition_does_not_go_with_sites(tmp_path):
    with pytest.raises(ValueError, match="does not go with kind: sites"):
        study_of(tmp_path, partition={"sites": 2})


def test_the_commented_start_is_a_study_of_such_a_folder():
    study = load_study("own_data")
    assert study.simulation.data.kind == "sites"
    assert study.study == "own_data"
