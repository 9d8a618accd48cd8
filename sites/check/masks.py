"""Masks: values, classes, how much they cover, and whether they lie on the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dusss_core.config import TrainingConfig
from dusss_core.manifest import Record
from dusss_core.sheets import name_key
from sites.check.look import LOSSY, SOFT, class_indices
from sites.check.report import Report, counted, name_rows

SMALL_MASK = 5e-4
"""Foreground masks below this share of the picture vanish when it is scaled down."""
GRAY = 32
"""Class indices from here on are gray values, unless the study has so many classes."""
MOST = 0.65
"""A median coverage above this is rather that of the background than of a finding."""
FULL = 0.98
"""Share of the picture from which a mask covers all of it."""


def check_masks(report: Report, records: Sequence[Record], looks: np.ndarray, study: TrainingConfig | None) -> None:
    """Look at every mask that could be read and fits its picture."""
    masked = looks["masked"]
    rows = np.array([record.row for record in records])

    def say(level: str, what: str, remedy: str, kind: str, where: np.ndarray) -> None:
        report.say_rows(level, "masks", what, remedy, kind, rows[masked & where])

    same = np.array([record.mask is not None and record.mask == record.image for record in records], dtype=bool)
    copied = looks["mask_pixels"] == looks["pixels"]
    say(
        "error",
        "{n} [mask is|masks are] the picture itself",
        "name the mask's own file",
        "mask_is_picture",
        same | copied,
    )
    _check_names(report, records)
    if not masked.any():
        return
    covered = looks["covered"]
    classes = {i: class_indices(looks[i]) for i in np.flatnonzero(masked)}
    least = max(GRAY, study.image.classes + 1) if study else GRAY
    gray = np.array([i in classes and classes[i].size > 0 and classes[i].max() >= least for i in range(len(looks))])
    gray &= ~(same | copied)
    found = sorted({int(index) for i, indices in classes.items() if not gray[i] for index in indices})
    _say_masks(report, covered[masked], found)
    _check_gray(report, rows, gray, classes)
    _check_classes(report, records, classes, gray, found, study)

    empty, full = covered == 0, covered >= FULL
    full &= ~(same | copied)
    if empty[masked].all():
        report.say(
            "warning", "masks", "every mask is empty", "check how they were exported", "empty_masks", rows[masked]
        )
    elif empty[masked].mean() <= 0.05:
        # where pictures without a finding are usual, an empty mask says just that
        say(
            "warning",
            "{n} [mask is|masks are] empty, and nearly all others are not",
            "look whether there is nothing to see, or the export failed",
            "empty_mask",
            empty,
        )
    else:
        say("note", "{n} [mask is|masks are] empty: [a picture|pictures] without a finding", "", "empty_mask", empty)
    say(
        "warning",
        "{n} [mask covers|masks cover] all of the picture",
        "draw them again, or leave the cell empty",
        "full_mask",
        full,
    )
    small = (covered > 0) & (covered < SMALL_MASK)
    say(
        "warning",
        f"{{n}} [covers|cover] less than {SMALL_MASK:.2%} of the picture",
        "check them; such findings vanish when pictures are scaled",
        "small_mask",
        small,
    )
    there = masked & ~empty
    median = float(np.median(covered[there])) if there.any() else 0.0
    if median < 0.35:
        say(
            "warning",
            "{n} [looks|look] inverted: the finding is 0 and the rest is not",
            "exchange foreground and background",
            "inverted_mask",
            (covered > max(0.6, 3 * median)) & ~full & ~gray,
        )
    elif median > MOST and found == [1]:
        say(
            "warning",
            f"{{n}} [covers|cover] more than {MOST:.0%} of the picture, as most masks here do: they look inverted",
            "exchange foreground and background, unless findings are that large",
            "inverted_masks",
            (covered > MOST) & ~full & ~gray,
        )
    dark = looks["dark"]
    if there.any() and np.median(dark[there]) < 0.5:
        say(
            "warning",
            "{n} [lies|lie] off the picture, on its black border",
            "look whether each mask belongs to its picture, and was not shifted",
            "mask_off_picture",
            ~empty & ~full & (dark > 0.9),
        )
    say(
        "warning",
        "{n} [mask is|masks are] stored in a format that blurs values; [it is|they are] cut at one half",
        "save masks as PNG",
        "lossy_mask",
        looks["flags"] & LOSSY > 0,
    )
    soft = (looks["flags"] & SOFT > 0) & (looks["flags"] & LOSSY == 0)
    say(
        "note",
        "{n} [mask has|masks have] soft borders; [it is|they are] cut at one half",
        "",
        "soft_mask",
        soft & ~gray,
    )


def _check_names(report: Report, records: Sequence[Record]) -> None:
    """A mask that is named after another picture, where masks are named after their own."""
    named = {record.row: (name_key(record.image.name), name_key(record.mask.name)) for record in records if record.mask}
    odd = [row for row, (image, mask) in named.items() if image != mask]
    pictures = {name_key(record.image.name) for record in records}
    report.say_rows(
        "warning",
        "masks",
        "{n} [mask is|masks are] named after another picture",
        "look whether each mask belongs to its picture",
        "mask_name",
        [row for row in odd if named[row][1] in pictures] if len(odd) <= 0.1 * len(named) else [],
    )


def _say_masks(report: Report, covered: np.ndarray, found: list[int]) -> None:
    empty = float((covered == 0).mean())
    median = float(np.median(covered[covered > 0])) if (covered > 0).any() else 0.0
    report.figures["masks"] = {
        "n": int(covered.size),
        "empty_share": empty,
        "median_coverage": median,
        "small": int(np.count_nonzero((covered > 0) & (covered < SMALL_MASK))),
        "classes": found,
    }
    report.say(
        "ok",
        "masks",
        f"{counted(covered.size, '{n} [mask|masks]')}, {empty:.1%} empty; the others cover "
        f"{median:.1%} (median); classes {', '.join(map(str, found)) or 'none'}",
    )


def _check_gray(report: Report, rows: np.ndarray, gray: np.ndarray, classes: dict[int, np.ndarray]) -> None:
    if gray.any():
        values = sorted({int(v) for i in np.flatnonzero(gray) for v in classes[i]})
        shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
        report.say_rows(
            "error",
            "masks",
            f"{{n}} [holds|hold] gray values ({shown}) that are no class indices: no study trains on them",
            "save one-class masks as 0 and 255, others as 0 background, 1, 2, ... the classes",
            "gray_mask",
            rows[gray],
        )


def _check_classes(report, records, classes, gray, found, study: TrainingConfig | None) -> None:
    """Classes in the masks against `image.classes`, and how many training masks each has."""
    if study is None:
        if found and found[-1] > 1:
            report.say(
                "note",
                "classes",
                f"masks hold classes up to {found[-1]}: a study has to say image.classes: {found[-1]}",
                "check against it: --study STUDY.yaml",
                "several_classes",
            )
        return
    known = study.image.classes
    beyond = [i for i, indices in classes.items() if not gray[i] and indices.size and indices.max() > known]
    report.say_rows(
        "error",
        "classes",
        f"{{n}} [mask holds|masks hold] a class beyond the study's {known}",
        "save one-class masks as 0 and 255, or ask the coordinator about image.classes",
        "unknown_class",
        [records[i].row for i in beyond],
    )
    if not found:
        return
    missing = [index for index in range(1, known + 1) if index not in found]
    if missing and known > 1:
        report.say(
            "warning",
            "classes",
            f"no mask holds class {', '.join(map(str, missing))} of the study's {known}",
            "check how the classes are numbered",
            "missing_class",
        )
    for index in found if known > 1 else []:
        rows = [records[i].row for i, indices in classes.items() if index in indices and records[i].split == "train"]
        if 0 < len(rows) < 3:
            report.say(
                "warning",
                "classes",
                f"class {index} is in {len(rows)} training masks alone: {name_rows(rows)}",
                "label more of it",
                "rare_class",
                rows,
            )
