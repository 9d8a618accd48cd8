"""Rows of other methods of step 1: what they share, and how they differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.grid.cell import Cell
from benchmarks.grid.methods import find_method, transfer
from benchmarks.grid.methods.presets import METHODS
from benchmarks.grid.trial import make_study

NAMES = ("mgca", "cmitm", "asg")


def study_of(method, dataset="qata", profile="cpu"):
    cell = Cell(dataset, 0.05, method, "centralized", profile, 1)
    changes = transfer.changes_of(cell) if method in transfer.METHODS else METHODS[method]
    return make_study(cell, Path("data"), changes=changes)


@pytest.mark.parametrize("name", NAMES)
def test_the_method_of_step_1_is_all_that_differs_from_clip(name):
    clip, other = study_of("clip"), study_of(name)
    assert other.method.pretraining == name
    same = {"preset": "clip", "pretraining": "dusss"}
    assert other.model_copy(update={"method": other.method.model_copy(update=same)}) == clip


@pytest.mark.parametrize("name", NAMES)
def test_without_labels_eq_11_alone_trains_the_decoder(name):
    method = study_of(f"{name}_paper").method
    assert (method.grounding_supervision, method.grounding_consistency, method.ltg) == (False, False, True)
    assert (method.sss, method.dcl, method.pairs) == (False, False, "multi_positive")
    assert study_of(f"{name}_paper").vlm == study_of("paper").vlm


@pytest.mark.parametrize(
    ("dataset", "profile"), [("qata", "cpu"), ("qata", "full"), ("monuseg", "cpu"), ("qata", "gpu")]
)
def test_transfer_rows_differ_in_step_1_alone_and_see_no_mask_before_step_2(dataset, profile):
    start = study_of("transfer_start", dataset, profile)
    assert start.pretrain.rounds == 0
    for name in ("clip", *NAMES):
        study = study_of(f"{name}_transfer", dataset, profile)
        assert study.student == start.student and study.segment == start.segment and study.vlm == start.vlm
        assert study.student.encoder == study.vlm.image_encoder and study.student.weights == "vlm"
        method = study.method
        assert not (method.text_mask or method.teacher or method.grounding_supervision or method.grounding_consistency)
        assert not (method.sss or method.dcl or method.ltg) and study.pretrain.rounds > 0
        assert method.pretraining == ("dusss" if name == "clip" else name)


def test_every_row_is_found():
    assert all(callable(find_method(name)) for name in (*NAMES, *transfer.METHODS))
