"""What a site tells of its test pictures: the figures that docs/architecture.md lists, and no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from client.answer import answer
from client.work.workbench import forget
from dusss_core.manifest import read_manifest, write_manifest
from dusss_core.phases import Phase
from dusss_core.training import initial_shared
from feddusss import wire
from tests.client.conftest import make_content
from tests.client.fake_private import make_private
from tests.server.conftest import make_study

ROOT = Path(__file__).parents[3]
MEANS = {"test.dice", "test.iou", "test.hd95", "test.n"}
BEHIND = {"test.dice_pooled", "test.n_positive"}
ENDS = {f"test.{name}_{end}" for name in ("dice", "dice_pooled", "iou", "hd95") for end in ("low", "high")}


@pytest.fixture(autouse=True)
def no_other_workbenches():
    forget()
    yield
    forget()


def told(site_file) -> dict[str, float]:
    """Figures of the answer to a message that tests the first student."""
    study = make_study(method={"preset": "supervised"}).training()
    asked = make_content(study=study, what="test")
    asked["arrays"] = wire.pack(initial_shared(study, Phase.SEGMENT))
    return dict(answer("evaluate", asked, site_file)["metrics"])


def change(site_file, n_test, patient=None):
    """`n_test` test pictures, from among all with a mask; `patient`: whose they are, by place."""
    path = site_file.parent / "manifest.csv"
    records = read_manifest(path)
    masked = [record.id for record in records if record.mask is not None][-n_test:]
    split = {"train": "train", "val": "val", "test": "train"}
    changed = []
    for record in records:
        if record.id in masked:
            whose = "" if patient is None else patient(masked.index(record.id))
            record = replace(record, split="test", patient=whose)
        else:
            record = replace(record, split=split[record.split], patient="")
        changed.append(record)
    write_manifest(path, changed)


def test_a_site_with_enough_pictures_tells_how_sure_its_figures_are(site_file):
    change(site_file, 15)
    found = told(site_file)
    bins = {name for name in found if name.startswith("test.dice_from_")}
    assert set(found) == MEANS | BEHIND | ENDS | bins | {"seconds"}
    assert found["test.n"] == sum(found[name] for name in bins) == 15
    for name in ("dice", "dice_pooled", "iou", "hd95"):
        assert found[f"test.{name}_low"] <= found[f"test.{name}"] <= found[f"test.{name}_high"]


def test_a_site_with_few_pictures_tells_no_interval(site_file):
    change(site_file, 9)
    assert not ENDS & set(told(site_file))


def test_a_site_with_pictures_of_few_patients_tells_no_interval(site_file):
    change(site_file, 15, lambda place: f"p{place % 5}")
    assert not ENDS & set(told(site_file))


def test_nobody_learns_of_single_pictures(site_file):
    change(site_file, 4)
    assert set(told(site_file)) == MEANS | BEHIND | {"seconds"}


def test_a_site_with_a_budget_tells_nothing_of_its_test(site_file):
    change(site_file, 15)
    make_private(site_file)
    assert told(site_file) == {}


def test_every_figure_of_the_test_is_listed_where_the_data_protection_officer_looks():
    listed = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in ("dice_pooled", "n_positive", "_low", "_high", "dice_from_0"):
        assert f"`{name}`" in listed
