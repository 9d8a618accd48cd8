"""A cell's file says what was measured, and the page can be made from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import accuracy, tables
from benchmarks.grid.cell import Cell
from benchmarks.grid.trial import Clock
from sites.manifest import Record, write_manifest

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
@pytest.mark.parametrize(("method", "setting"), [("wrong_sentence", "centralized"), ("supervised", "local")])
def test_the_file_of_a_cell(data, tmp_path, method, setting):
    cell = Cell("polypgen", 0.5, method, setting, "cpu", 1)
    result = json.loads(json.dumps(accuracy.measure(cell, data, tmp_path / "work", Clock(None), SMALL)))
    assert (result["method"], result["setting"], result["text"]) == (method, setting, "text")
    assert list(result["sites"]) == ["c1", "c2", "c3", "c4", "c5", "c6"]
    assert result["test"]["n"] == len(result["test_dice_per_picture"]) == 12 and result["val"]["n"] == 6
    assert result["test"]["dice"] == pytest.approx(np.mean(result["test_dice_per_picture"]) / 1000, abs=2e-3)
    told = [result["test"], result["val"]]
    if method == "wrong_sentence":
        told += [
            result["text_mask"],
            result["with_sentence"],
            result["val"]["text_mask"],
            result["val"]["with_sentence"],
        ]
    else:
        assert result["text_mask"]["pooled_dice"] is None and "text_mask" not in result["val"]
        assert list(result["federations"]) == list(result["sites"])
        assert result["federations"]["c2"] == result["sites"]["c2"]["dice"]
    for figures in told:
        assert all(0 <= figures[name] <= 1 for name in ("pooled_dice", "precision", "recall"))
    assert sum(one["n"] for one in result["test"]["area_by_size"].values()) == 12
    assert f"| {method} |" in tables.tables([result]) and "pooled Dice / precision / recall" in tables.tables([result])
