"""A cell's file says what was measured, and the page can be made from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import accuracy, tables
from benchmarks.grid.cell import Cell
from benchmarks.grid.measures import PERSONAL, STUDENT
from benchmarks.grid.methods import find_method
from benchmarks.grid.trial import Clock, Trained, Trial, make_study
from dusss_core.files import digest_of_tensors
from dusss_core.manifest import Record, write_manifest
from dusss_core.student import read_student

SMALL = (
    "image.size=32",
    "vlm.image_encoder=test_resnet",
    "vlm.weights=null",
    "vlm.dim=16",
    "vlm.decoder_width=16",
    "vlm.patch_stride=8",
    "student.width=4",
    "pretrain.rounds=1",
    "segment.rounds=1",
    "simulation.workers=1",
)


@pytest.fixture
def data(tmp_path) -> Path:
    """Six hospitals with few pictures of bright squares, the left ones left."""
    folder, random = tmp_path / "polypgen", np.random.default_rng(1)
    folder.mkdir()
    records = []
    for i in range(6 * 8):
        mask = np.zeros((32, 32), np.uint8)
        mask[8 : 10 + i % 7, 2 + 16 * (i % 2) :][:, :9] = 255
        picture = (mask // 2 + random.integers(0, 90, mask.shape)).astype(np.uint8)
        for name, plane in (("i", picture), ("m", mask)):
            Image.fromarray(plane).save(folder / f"{name}{i}.png")
        records.append(
            Record(
                f"r{i}",
                folder / f"i{i}.png",
                folder / f"m{i}.png",
                f"One square, {'left' if i % 2 == 0 else 'right'}.",
                ("train", "train", "train", "train", "train", "val", "test", "test")[i // 6],
                labelled=True,
                extra={"centre": f"C{i % 6 + 1}"},
            )
        )
    write_manifest(folder / "manifest.csv", records)
    return tmp_path


@pytest.mark.slow
def test_the_file_of_a_cell_that_was_trained(data, tmp_path):
    cell = Cell("polypgen", 0.5, "wrong_sentence", "centralized", "cpu", 1)
    result = json.loads(json.dumps(accuracy.measure(cell, data, tmp_path / "work", Clock(None), SMALL)))
    assert (result["method"], result["setting"], result["text"]) == ("wrong_sentence", "centralized", "text")
    assert list(result["sites"]) == ["c1", "c2", "c3", "c4", "c5", "c6"]
    assert result["test"]["n"] == len(result["test_dice_per_picture"]) == 12 and result["val"]["n"] == 6
    assert result["test"]["hd95"] is not None
    for part in (result, result["val"]):
        for figures in (part["text_mask"], part["with_sentence"]):
            assert all(0 <= figures[name] <= 1 for name in ("pooled_dice", "precision", "recall"))
    assert sum(one["n"] for one in result["test"]["area_by_size"].values()) == 12
    assert "| wrong_sentence, 50 % |" in tables.tables([result])


@pytest.mark.slow
def test_the_file_of_a_cell_whose_student_is_given_sentences(data, tmp_path):
    cell = Cell("polypgen", 1.0, "early_fusion", "centralized", "cpu", 1)
    result = json.loads(json.dumps(accuracy.measure(cell, data, tmp_path / "work", Clock(None), SMALL)))
    assert result["test"]["text_dice"] == result["with_sentence"]["dice"] is not None
    assert len(result["test_text_dice_per_picture"]) == len(result["test_dice_per_picture"]) == 12
    assert 0 <= result["val"]["text_dice"] <= 1 and result["val"]["with_sentence"]["dice"] is not None
    assert result["text_mask"]["dice"] is None
    assert "| early_fusion, 100 % |" in tables.tables([result])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ditto", "fedrep", "apfl", "finetune"])
def test_the_file_of_a_cell_whose_sites_have_students_of_their_own(kind, data, tmp_path):
    cell = Cell("polypgen", 0.5, f"supervised_{kind}", "federated", "cpu", 1)
    overrides = (*SMALL, "simulation.partition.labels_of=all", "segment.batch=2")
    result = json.loads(json.dumps(accuracy.measure(cell, data, tmp_path / "work", Clock(None), overrides)))
    own = result["personal"]
    assert own["kind"] == kind and list(own["sites"]) == list(result["sites"])
    dice = [site["dice"] for site in own["sites"].values()]
    assert own["dice_mean"] == pytest.approx(sum(dice) / 6, abs=1e-4) and own["dice_worst"] == min(dice)
    shared = [site["dice"] for site in result["sites"].values()]
    assert own["shared"] == {"dice_mean": pytest.approx(sum(shared) / 6, abs=1e-4), "dice_worst": min(shared)}
    told = json.loads(next((tmp_path / "work").rglob("summary.json")).read_text())
    assert own["dice_mean"] == pytest.approx(told["personal"]["dice_mean"], abs=1e-3)
    assert own["val_dice_mean"] == pytest.approx(told["personal"]["val_dice_mean"], abs=1e-3)
    assert result["test"]["dice"] == pytest.approx(told["global"]["dice_mean"], abs=1e-3)


@pytest.mark.slow
def test_where_normalisation_layers_stay_at_the_sites_each_model_is_tested_with_those_of_the_site(data, tmp_path):
    cell = Cell("polypgen", 0.5, "dusss", "federated", "cpu", 1)
    overrides = (*SMALL, "simulation.partition.labels_of=all", "segment.batch=2", "local_norm=true", "vlm.mask_bias=0")
    result = json.loads(json.dumps(accuracy.measure(cell, data, tmp_path / "work", Clock(None), overrides)))
    run = next((tmp_path / "work").rglob("summary.json")).parent
    masks = json.loads((run / "summary.json").read_text())["text_mask"]
    mean = sum(masks[site] for site in result["sites"]) / len(result["sites"])
    assert result["text_mask"]["test_dice"] == pytest.approx(mean, abs=1e-3) and mean > 0
    trained = find_method(cell.method)(Trial(cell, run, [], data, Clock(None), overrides))
    own = {site: digest_of_tensors(trained.student_at(site)) for site in result["sites"]}
    assert own == {site: read_student(run / "students" / f"{site}.safetensors")[0].tensors for site in own}
    assert len(set(own.values())) == len(own)


def test_figures_of_the_sites_own_students_are_means_over_sites_and_the_worst_one(data, tmp_path, monkeypatch):
    def figures_on(split, trained, files):
        scores = {file.parent.name: _DICE[file.parent.name] for file in files}
        return {site: {STUDENT: _figures(dice, 2), PERSONAL: _figures(dice / 2, 2)} for site, dice in scores.items()}

    cell = Cell("polypgen", 0.5, "supervised", "federated", "cpu", 1)
    trained = Trained(make_study(cell, data, ("personal=apfl",)), {}, None, {}, None, 1.0)
    monkeypatch.setattr("benchmarks.grid.trial.figures_on", figures_on)
    monkeypatch.setattr("benchmarks.grid.methods.find_method", lambda name: lambda trial: trained)
    own = accuracy.measure(cell, data, tmp_path / "work", Clock(None))["personal"]
    assert (own["kind"], own["dice_mean"], own["dice_worst"], own["val_dice_mean"]) == ("apfl", 0.175, 0.05, 0.175)
    assert own["shared"] == {"dice_mean": 0.35, "dice_worst": 0.1} and own["sites"]["c6"]["dice"] == 0.3


def test_a_hospital_that_is_left_out_has_figures_of_its_own_test_pictures_too(data, tmp_path, monkeypatch):
    """C2 has r1, r7, ..., r43, and tests on r37 and r43 where it takes part."""

    def figures_on(split, trained, files):
        return {file.parent.name: {STUDENT: scores if file.parent.name == "official_test" else own} for file in files}

    own = _figures(0.9, 2)
    dice = np.arange(8) / 10
    scores = {**_figures(0.5, 8), "id": np.array([f"r{1 + 6 * i}" for i in range(8)]), "dice": dice}
    cell = Cell("polypgen", 0.5, "supervised", "left_out_C2", "cpu", 1)
    trained = Trained(make_study(cell, data), {}, None, {}, None, 1.0)
    monkeypatch.setattr("benchmarks.grid.trial.figures_on", figures_on)
    monkeypatch.setattr("benchmarks.grid.methods.find_method", lambda name: lambda trial: trained)
    result = accuracy.measure(cell, data, tmp_path / "work", Clock(None))
    assert result["test"]["dice"] == pytest.approx(dice.mean(), abs=1e-4)
    assert (result["left_out"]["site"], result["left_out"]["n"]) == ("c2", 2)
    assert result["left_out"]["dice"] == pytest.approx((0.6 + 0.7) / 2)


def _figures(dice: float, n: int) -> dict[str, np.ndarray]:
    """As if each picture had 100 pixels of a finding, and as many were found."""
    found = {"overlap": 100 * dice, "predicted": 100, "true": 100, "pixels": 1000}
    scores = {**found, "dice": dice, "iou": 0, "hd95": 0}
    return {"id": np.array([f"r{i}" for i in range(n)]), **{name: np.full(n, value) for name, value in scores.items()}}


@pytest.mark.parametrize("setting", ["local", "federated", "centralized", "left_out_C2"])
def test_figures_are_those_of_the_sites_whose_pictures_count(data, tmp_path, monkeypatch, setting):
    def figures_on(split, trained, files):
        sites = [file.parent.name for file in files]
        return {site: {STUDENT: _figures(_DICE[site] if split == "test" else 0.9, 2)} for site in sites}

    trained = Trained(make_study(Cell("polypgen", 0.5, "supervised", setting, "cpu", 1), data), {}, None, {}, None, 1.0)
    monkeypatch.setattr("benchmarks.grid.trial.figures_on", figures_on)
    monkeypatch.setattr("benchmarks.grid.methods.find_method", lambda name: lambda trial: trained)
    cell = Cell("polypgen", 0.5, "supervised", setting, "cpu", 1)
    result = accuracy.measure(cell, data, tmp_path / "work", Clock(None))
    counting = ["official_test"] if setting == "left_out_C2" else [site for site in _DICE if site != "official_test"]
    dice = sum(_DICE[site] for site in counting) / len(counting)
    figures = [result["test"][name] for name in ("dice", "pooled_dice", "precision", "recall")]
    assert figures == pytest.approx([dice] * 4, abs=1e-4)
    assert result["test"]["n"] == 2 * len(counting)
    assert {site: one["dice"] for site, one in result["sites"].items()} == {
        site: _DICE[site] for site in sorted({*result["sites"], *counting})
    }
    assert ("federations" in result) == (setting == "local") and "personal" not in result
    if setting == "local":
        assert result["federations"] == {site: _DICE[site] for site in counting}
    assert result["val"]["pooled_dice"] == 0.9 and result["with_sentence"]["dice"] is None
    assert "text_dice" not in result["test"] and "test_text_dice_per_picture" not in result


_DICE = {"c1": 0.1, "c2": 0.2, "c3": 0.3, "c4": 0.4, "c5": 0.5, "c6": 0.6, "official_test": 0.7}
