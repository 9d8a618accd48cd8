"""`kind: lvit` simulates what lies in the folder: what is corrected or added there is noticed."""

from __future__ import annotations

import os

import pytest

from dusss_core.errors import UserError
from dusss_core.manifest import read_manifest
from server.simulation.materialise import materialise
from tests.server.conftest import make_study
from tests.sites.builders import mask, picture, save, write_rows

CORRECTED = {"image": "a0.png", "text": "right lung"}


@pytest.fixture
def train(tmp_path):
    """A folder with pictures, masks and a sheet, none of them touched for an hour."""
    folder = tmp_path / "data/Train_Folder"
    for i in range(3):
        save(folder / f"img/a{i}.png", picture(i))
        save(folder / f"labelcol/a{i}.png", mask(i))
    write_rows(folder / "texts.csv", [{"image": "a0.png", "text": "left lung"}])
    for path in (folder.parent, folder, *folder.rglob("*")):
        os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    return folder


def simulated(train):
    study = make_study(
        data={"root": str(train.parents[1])},
        simulation={"data": {"kind": "lvit", "path": "data"}, "partition": {"sites": 1}},
    )
    (file,) = materialise(study, train.parents[1] / "run")
    return file.parent / "manifest.csv"


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        (lambda train: write_rows(train / "texts.csv", [CORRECTED]), lambda rows: rows[0].text == "right lung"),
        (lambda train: write_rows(train / "more.csv", [{**CORRECTED, "image": "a1"}]), lambda rows: rows[1].text),
        (lambda train: save(train / "img/b.png", picture(9)), lambda rows: rows[3].id == "b"),
        (lambda train: (train / "labelcol/a2.png").unlink(), lambda rows: rows[2].mask is None),
    ],
)
def test_what_is_changed_in_the_folder_reaches_the_sites_of_the_next_run(train, change, holds):
    before = read_manifest(simulated(train))
    change(train)
    after = read_manifest(simulated(train))
    assert holds(after) and before != after


def test_as_long_as_nothing_changes_the_sites_stay(train):
    manifest = simulated(train)
    (train / "~$texts.xlsx").write_bytes(b"a lock file of Excel")
    first = manifest.stat().st_ino
    assert simulated(train).stat().st_ino == first


def test_a_patient_in_two_splits_is_refused_unless_the_splits_are_drawn_anew(train):
    save(train.parent / "Test_Folder/img/b.png", picture(9))
    source = {"kind": "lvit", "path": "data", "extract": {"patient": "^[ab]"}}
    (train / "img/a0.png").rename(train / "img/b0.png")

    def divided(**partition):
        study = make_study(
            data={"root": str(train.parents[1])},
            simulation={"data": source, "partition": {"sites": 1, **partition}},
        )
        (file,) = materialise(study, train.parents[1] / "run")
        return {record.split for record in read_manifest(file.parent / "manifest.csv") if record.patient == "b"}

    with pytest.raises(UserError, match=r"patient 'b' is in train with .*b0\.png and in test with .*b\.png"):
        divided()
    assert divided(keep_splits=False) == {"train"}
