"""python -m dusss_core evaluate: figures of a finished student on any data set with masks.

Masks and predictions are compared at each picture's own size; `summary.json` of a run has figures at the study's size.
Two kinds of Dice are told apart: the mean over pictures, where a small finding counts as much as a large one, and the
pooled one, over the pixels of all pictures together, as many papers have it.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dusss_core.errors import UserError
from dusss_core.files import check_replaceable, write_text
from dusss_core.intervals import DRAWS, LEVEL, Bootstrap, groups_of, interval, over_classes, pooled_dice
from dusss_core.manifest import SPLITS, Record, read_manifest
from dusss_core.metrics import per_image, pixel_counts
from dusss_core.pictures import load_mask
from dusss_core.student.student import Student

COLUMNS = ("id", "patient", "height", "width", "dice", "iou", "hd95_pixels", "true_pixels", "predicted_pixels")


def evaluate(student: Student, manifest: Path, out: Path | None = None, split: str | None = None) -> dict[str, Any]:
    """Figures over the records of a manifest that have masks, and a CSV with a line for each.

    Returns:
        {"n", "splits", "groups", "dice_per_picture", "dice_pooled", "iou_per_picture", "hd95_per_picture", "classes",
        ...}. "splits" counts the records of each split. A figure is {"value", "low", "high"}, with the middle 95 % of
        2,000 bootstrap draws of patients (of pictures where no patient is named).

    Raises:
        UserError: mistakes in the manifest, no record with a mask, pictures that cannot be read, or `out` is a file
            that is no such CSV.
    """
    if out is not None:
        check_replaceable(out, "a table of evaluate", _is_table)
    records = _with_masks(manifest, split)
    scores = _scores(student, records)
    if out is not None:
        write_text(out, _csv(scores))
    bootstrap = Bootstrap(groups_of(scores["patient"], scores["id"]))
    counts = np.stack([scores["overlap"], scores["true"], scores["predicted"]], axis=-1)  # N x F x 3
    names = student.about.names[1:]
    each, whole = pooled_dice(bootstrap.sums(counts)), pooled_dice(counts.sum(0))
    n = bootstrap.sums(np.ones(len(counts)))

    def over_pictures(name: str) -> dict[str, float | None]:
        return _figure(scores[name].mean(), bootstrap.sums(scores[name]) / n)

    figures: dict[str, Any] = {
        "model": student.about.tensors,
        "study": student.about.study,
        "n": len(counts),
        "splits": dict(sorted(Counter(record.split for record in records).items())),
        "groups": len(bootstrap),
        "dice_per_picture": over_pictures("dice"),
        "dice_pooled": _figure(over_classes(whole), over_classes(each)),
        "iou_per_picture": over_pictures("iou"),
        "hd95_per_picture": over_pictures("hd95"),
    }
    if len(names) > 1:
        figures["classes"] = {
            name: {
                "dice_pooled": _figure(whole[i], each[:, i]),
                "dice_per_picture": _present(scores, i),
                "pictures_with_it": int((scores["true"][:, i] > 0).sum()),
            }
            for i, name in enumerate(names)
        }
    return figures


def scores_of(student: Student, manifest: Path, split: str | None = None) -> dict[str, np.ndarray]:
    """Figures of each record with a mask: "id", "patient", "height", "width", "dice", "iou", "hd95": N; "overlap",
    "true", "predicted": N x F pixels of each foreground class.

    Raises:
        UserError: as `evaluate`.
    """
    return _scores(student, _with_masks(manifest, split))


def _with_masks(manifest: Path, split: str | None) -> list[Record]:
    if split is not None and split not in SPLITS:
        raise UserError(f"--split {split}: no such split", f"use {', '.join(SPLITS)}")
    records = [r for r in read_manifest(manifest) if r.mask is not None and split in (None, r.split)]
    if not records:
        raise UserError(f"{manifest}: no record with a mask to compare with", "name masks in the column mask")
    return records


def _scores(student: Student, records: list[Record]) -> dict[str, np.ndarray]:
    classes = student.about.image.classes
    lines = []
    predictions = student.predict_each(record.image for record in records)
    for record, prediction in zip(records, predictions, strict=True):
        lines.append(_scored(record, prediction.mask, load_mask(record, prediction.mask.shape, classes), classes))
    return {name: np.array([line[name] for line in lines]) for name in lines[0]}


def _is_table(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline().strip() == ",".join(COLUMNS).encode()


def table(figures: dict[str, Any]) -> str:
    """For people."""
    of = f"{figures['n']} pictures" + (f" of {figures['groups']} patients" if figures["groups"] < figures["n"] else "")
    names = {
        "dice_per_picture": "Dice, mean over pictures",
        "dice_pooled": "Dice, pooled over all pixels",
        "iou_per_picture": "IoU, mean over pictures",
        "hd95_per_picture": "HD95 in pixels, mean over pictures",
    }
    lines = [f"study {figures['study']}, {of}; in brackets the middle {LEVEL} % of {DRAWS} bootstrap draws"]
    lines += [f"  {title:<36}{_told(figures[name])}" for name, title in names.items()]
    for name, one in figures.get("classes", {}).items():
        lines.append(f"  {name}: pooled {_told(one['dice_pooled'])}; in {one['pictures_with_it']} pictures")
    if len(figures["splits"]) > 1:
        parts = ", ".join(f"{n} {name}" for name, n in figures["splits"].items())
        lines.append(
            f"These are {parts} pictures. If the student was trained on this manifest, figures over its training and "
            "validation pictures are too good: --split test takes the test pictures alone."
        )
    return "\n".join(lines)


def _scored(record: Record, predicted: np.ndarray, true: np.ndarray, classes: int) -> dict[str, Any]:
    found = per_image(predicted[None], true[None], classes)
    scores = {name: found[name][0] for name in ("dice", "iou", "hd95")}
    overlap, of_truth, of_prediction = pixel_counts(predicted[None], true[None], classes)[0].T.tolist()
    return {
        "id": record.id,
        "patient": record.patient,
        "height": true.shape[0],
        "width": true.shape[1],
        **scores,
        "overlap": overlap,
        "true": of_truth,
        "predicted": of_prediction,
    }


def _csv(scores: dict[str, np.ndarray]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i in range(len(scores["id"])):
        figures = [f"{scores[name][i]:.6f}" for name in ("dice", "iou", "hd95")]
        pixels = [int(scores[name][i].sum()) for name in ("true", "predicted")]
        writer.writerow([*(scores[name][i] for name in ("id", "patient", "height", "width")), *figures, *pixels])
    return out.getvalue()


def _present(scores: dict[str, np.ndarray], i: int) -> float | None:
    """Mean over the pictures in which the class is, in truth or prediction."""
    size = scores["true"][:, i] + scores["predicted"][:, i]
    there = size > 0
    return float((2 * scores["overlap"][there, i] / size[there]).mean()) if there.any() else None


def _figure(value: float, draws: np.ndarray) -> dict[str, float | None]:
    found = interval(draws)
    if np.isnan(value) or found is None:
        return {"value": None, "low": None, "high": None}
    return {"value": float(value), "low": found[0], "high": found[1]}


def _told(figure: dict[str, float | None]) -> str:
    if figure["value"] is None:
        return "none"
    return f"{figure['value']:.3f}  [{figure['low']:.3f}, {figure['high']:.3f}]"
