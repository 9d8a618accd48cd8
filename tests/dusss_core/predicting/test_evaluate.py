"""Figures on any data set: counted by hand, two kinds of Dice told apart, intervals that hold patients together."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import dusss_core
from dusss_core.__main__ import main
from dusss_core.metrics import per_image
from dusss_core.predicting import fit as fitting
from dusss_core.predicting.evaluate import evaluate
from dusss_core.readers import read_mask
from tests.sites.builders import rows_of, write_rows


@pytest.fixture
def manifest(tmp_path):
    """Six pictures of three patients, two of them in the test split; one has no mask."""
    rows = rows_of(tmp_path / "data", 7)
    for i, row in enumerate(rows):
        row["split"], row["patient"] = ("test" if i in (4, 5) else "train"), f"p{i // 2}"
    rows[6]["mask"] = ""
    return write_rows(tmp_path / "data/manifest.csv", rows)


def test_figures_are_those_of_the_masks_by_hand(student_file, manifest, tmp_path, capsys):
    model = student_file()
    assert main(["evaluate", str(model), str(manifest), "--out", str(tmp_path / "each.csv"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    student = dusss_core.load(model, "cpu")
    dice, overlap, size = [], 0, 0
    with (tmp_path / "each.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == [f"r{i}" for i in range(6)]
    for i, line in enumerate(lines):
        predicted = student.predict(manifest.parent / f"images/{i}.png").mask
        true = read_mask(manifest.parent / f"masks/{i}.png")
        scores = per_image(predicted[None], true[None], 1)
        assert float(line["dice"]) == pytest.approx(scores["dice"][0], abs=1e-6)
        assert float(line["hd95_pixels"]) == pytest.approx(scores["hd95"][0], abs=1e-6)
        assert (int(line["true_pixels"]), int(line["predicted_pixels"])) == (true.sum(), predicted.sum())
        dice.append(scores["dice"][0])
        overlap, size = overlap + (predicted & true).sum(), size + int(predicted.sum()) + int(true.sum())
    assert (told["n"], told["groups"]) == (6, 3)
    assert told["dice_per_picture"]["value"] == pytest.approx(np.mean(dice))
    assert told["dice_pooled"]["value"] == pytest.approx(2 * overlap / size)
    for name in ("dice_per_picture", "dice_pooled", "iou_per_picture", "hd95_per_picture"):
        assert told[name]["low"] <= told[name]["value"] <= told[name]["high"]


def test_intervals_draw_patients_and_not_their_pictures(student_file, tmp_path):
    # one patient alone: whatever is drawn is the same
    rows = rows_of(tmp_path / "data", 5)
    for row in rows:
        row["patient"] = "same"
    student = dusss_core.load(student_file(), "cpu")
    together = evaluate(student, write_rows(tmp_path / "data/one.csv", rows))["dice_per_picture"]
    assert together["low"] == pytest.approx(together["high"])
    for i, row in enumerate(rows):
        row["patient"] = f"p{i}"
    apart = evaluate(student, write_rows(tmp_path / "data/five.csv", rows))["dice_per_picture"]
    assert apart["low"] < apart["value"] < apart["high"]
    assert apart["value"] == pytest.approx(together["value"])


def test_a_split_can_be_chosen_and_without_masks_nothing_is_told(student_file, manifest, capsys):
    model = str(student_file())
    assert main(["evaluate", model, str(manifest), "--split", "test"]) == 0
    told = capsys.readouterr().out
    assert "2 pictures of 1 patients" in told and "too good" not in told
    assert "Dice, mean over pictures" in told
    assert "Dice, pooled over all pixels" in told
    assert main(["evaluate", model, str(manifest)]) == 0
    told = capsys.readouterr().out
    assert "These are 2 test, 4 train pictures." in told and "--split test" in told
    assert main(["evaluate", model, str(manifest), "--split", "val"]) == 2
    assert "no record with a mask" in capsys.readouterr().err


@pytest.mark.parametrize("out", [".", "/"])
def test_a_folder_is_no_file_to_write(student_file, manifest, capsys, out):
    assert main(["evaluate", str(student_file()), str(manifest), "--device", "cpu", "--out", out]) == 2
    assert f"error: {out}: is a folder" in capsys.readouterr().err


def test_several_classes_have_figures_of_their_own(student_file, tmp_path):
    from tests.sites.builders import save

    rows = rows_of(tmp_path / "data", 4)
    for i in range(4):
        mask = np.zeros((48, 40), np.uint8)
        mask[5:20, 5:20], mask[25:40, 10:30] = 1, 2 if i else 0
        save(tmp_path / f"data/masks/{i}.png", mask)
    student = dusss_core.load(student_file(image={"classes": 2, "names": ["cyst", "tumour"]}), "cpu")
    figures = evaluate(student, write_rows(tmp_path / "data/m.csv", rows))
    overlap, size = np.zeros(3), np.zeros(3)
    for i in range(4):
        predicted = student.predict(tmp_path / f"data/images/{i}.png").mask
        true = read_mask(tmp_path / f"data/masks/{i}.png")
        for c in (1, 2):
            overlap[c] += ((predicted == c) & (true == c)).sum()
            size[c] += (predicted == c).sum() + (true == c).sum()
    for c, name in ((1, "cyst"), (2, "tumour")):
        assert figures["classes"][name]["dice_pooled"]["value"] == pytest.approx(2 * overlap[c] / size[c])
    assert figures["dice_pooled"]["value"] == pytest.approx(np.mean(2 * overlap[1:] / size[1:]))
    assert figures["classes"]["tumour"]["pictures_with_it"] >= 3


@pytest.mark.parametrize(("volumes", "slices"), [(2, 100), (40, 3), (100, 1), (3, 1)])
def test_a_fit_looks_at_slices_from_all_over(tmp_path, monkeypatch, volumes, slices):
    """Not at the first ones of the first volume, where there may be nothing to see."""

    class Fitted:
        about = None

        def fit(self, pictures):
            self.seen = pictures
            return self

        def save(self, path):
            pass

    monkeypatch.setattr(fitting, "find_jobs", lambda paths, out: list(range(volumes)))
    monkeypatch.setattr(fitting, "pictures_of", lambda job: ((job, number) for number in range(slices)))
    student = Fitted()
    fitting.fit(student, [tmp_path], tmp_path / "mine.safetensors")
    assert len(student.seen) == min(64, volumes * slices) and len(set(student.seen)) == len(student.seen)
    for axis, length in enumerate((volumes, slices)):
        found = {place[axis] for place in student.seen}
        assert min(found) == 0 and max(found) == length - 1


def test_a_fit_that_does_harm_is_not_taken(student_file, manifest, tmp_path, monkeypatch, capsys):
    scores = iter([0.64, 0.45])
    monkeypatch.setattr("dusss_core.predicting.fit.scores_of", lambda *args: {"dice": np.array([next(scores)])})
    out = tmp_path / "mine.safetensors"
    command = ["fit", str(student_file()), str(manifest.parent / "images"), "--out", str(out), "--check", str(manifest)]
    assert main(command) == 0
    assert "left as it was" in capsys.readouterr().out
    assert dusss_core.load(out, "cpu").about.layers == "shared"
    scores = iter([0.45, 0.64])
    assert main(command) == 0
    assert dusss_core.load(out, "cpu").about.layers == "fitted"


@pytest.mark.parametrize("out", ["data/manifest.csv", "data/masks/0.png", "other.csv"])
def test_figures_are_written_over_no_other_file(student_file, manifest, tmp_path, capsys, out):
    (tmp_path / "other.csv").write_text("id,image\n")
    before = (tmp_path / out).read_bytes()
    command = ["evaluate", str(student_file()), str(manifest), "--out"]
    assert main([*command, str(tmp_path / out)]) == 2
    told = capsys.readouterr().err
    assert f"{out}: it is there already" in told and "name another file for --out" in told
    assert (tmp_path / out).read_bytes() == before
    assert [main([*command, str(tmp_path / "each.csv")]) for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("out", ["data/images/0.png", "data/manifest.csv", "student.safetensors", "north.safetensors"])
def test_a_fitted_student_is_written_over_no_other_file(student_file, manifest, tmp_path, capsys, out):
    model = student_file()
    student_file("north.safetensors", layers="site", image={"mean": 0.4})
    before = (tmp_path / out).read_bytes()
    command = ["fit", str(model), str(manifest.parent / "images"), "--out"]
    assert main([*command, str(tmp_path / out)]) == 2
    told = capsys.readouterr().err
    assert f"{out}: " in told and "name another file for --out" in told
    assert (tmp_path / out).read_bytes() == before
    assert [main([*command, str(tmp_path / "mine.safetensors")]) for _ in range(2)] == [0, 0]
