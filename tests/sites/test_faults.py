"""`sites check` finds every planted fault, names its row and grades it, and says nothing against clean data."""

from __future__ import annotations

import json

import pytest

from dusss_core.config import TrainingConfig
from sites.check import check_site
from sites.config import write_site
from sites.synth.config import SynthConfig
from sites.synth.hospitals import write_hospitals
from tests.sites.faults import FAULTS, clean, plant_all

STUDY = TrainingConfig(segment={"batch": 8})


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = clean(tmp_path_factory.mktemp("faults"))
    rows = plant_all(folder)
    return check_site(folder.write(), progress=lambda done, total: None, study=STUDY), rows


def test_at_least_25_kinds_are_planted():
    assert len({name.partition("/")[0] for name in FAULTS}) >= 25


@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_is_found_named_by_row_and_graded(planted, name):
    report, _ = planted
    kind, level = name.partition("/")[0], FAULTS[name][0]
    row = 2 + 5 + 3 * list(FAULTS).index(name)
    found = [f for f in report.findings if f.kind == kind and row in f.rows]
    assert found, [f for f in report.findings if row in f.rows]
    assert {f.level for f in found} == {level}
    assert f"row {row}" in " ".join(f.message for f in found) or len(found[0].rows) > 8


def test_rows_without_a_fault_are_not_named_above_a_note(planted):
    report, rows = planted
    touched = {row for of_kind in rows.values() for row in of_kind}
    touched |= {row - 4 for row in touched} | {3, 232, 233}  # what duplicates and shared keys refer to
    wrong = {
        row: f.message
        for f in report.findings
        if f.level in ("warning", "error")
        for row in f.rows
        if row not in touched
    }
    assert not wrong


def test_a_clean_folder_has_no_finding_above_a_note(tmp_path):
    report = check_site(clean(tmp_path).write(), progress=lambda done, total: None, study=STUDY)
    assert not [f for f in report.findings if f.level in ("warning", "error")]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_demos_hospitals_have_no_finding_above_a_note(tmp_path, seed):
    settings = SynthConfig(hospitals=3, size=64, contrast=1.8)
    for manifest in write_hospitals(tmp_path, settings, seed):
        report = check_site(write_site(manifest.parent, manifest.parent.name), progress=lambda done, total: None)
        assert not [f for f in report.findings if f.level in ("warning", "error")]


def test_header_fields_that_identify_are_named_and_their_content_is_kept_nowhere(tmp_path):
    folder = clean(tmp_path)
    FAULTS["identifying_tags/dicom_with_a_name"][1](folder, 5)
    report = check_site(folder.write(), progress=lambda done, total: None, study=STUDY)
    assert any("PatientName" in finding.message for finding in report.findings)
    kept = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert kept and b"PatientName" in b"".join(path.read_bytes() for path in kept)
    said = json.dumps(report.as_dict())
    for secret in ("Doe", "Jane", "19700101"):
        assert secret not in said and not [path for path in kept if secret.encode() in path.read_bytes()]
