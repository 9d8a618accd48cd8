"""A cell's file says what was measured, and the page can be made from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import accuracy, tables
from benchmarks.grid.cell import Cell
from benchmarks.grid.measures import STUDENT
from benchmarks.grid.trial import Clock, Trained, make_study
from dusss_core.manifest import Record, write_manifest

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


def _figures(dice: float, n: int) -> dict[str, np.ndarray]:
    """As if each picture had 100 pixels of a finding, and as many were found."""
    found = {"overlap": 100 * dice, "predicted": 100, "true": 100, "pixels": 1000}
    return {name: np.full(n, value) for name, value in {**found, "dice": dice, "iou": 0, "hd95": 0}.items()}


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
    assert ("federations" in result) == (setting == "local")
    if setting == "local":
        assert result["federations"] == {site: _DICE[site] for site in counting}
    assert result["val"]["pooled_dice"] == 0.9 and result["with_sentence"]["dice"] is None


_DICE = {"c1": 0.1, "c2": 0.2, "c3": 0.3, "c4": 0.4, "c5": 0.5, "c6": 0.6, "official_test": 0.7}
