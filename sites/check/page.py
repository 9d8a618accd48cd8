"""check.html: the findings with examples, for the site's own eyes.

One file that asks for nothing: pictures stand in it. It shows pictures and sentences of patients, so it is written only
where it is asked for, readable by its owner alone, and never sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dusss_core.errors import UserError
from dusss_core.manifest import Record
from dusss_core.readers import read_image, read_mask
from feddusss.page import data_url, outline, template, write_private
from sites.check.report import LEVELS, Finding, Report

SIDE = 168
"""Height and width that an example fits into, in pixels."""
EACH, MOST = 4, 60
"""Examples of a finding, and of the page."""
OUTLINE = (255, 140, 0)
"""Of a mask: an orange that is seen on black, gray and pink."""


def write_page(path: Path, report: Report, records: Sequence[Record]) -> None:
    """Write the page of `report` to `path`; its examples are read anew.

    Raises:
        UserError: the file cannot be written.
    """
    shown = contents(report, {record.row: record for record in records})
    write_private(path, template(Path(__file__).parent / "templates", "check.html.j2").render(shown))


def contents(report: Report, record_of: Mapping[int, Record]) -> dict[str, Any]:
    """What the template shows."""
    left = MOST
    findings = []
    for finding in sorted(report.findings, key=lambda finding: LEVELS.index(finding.level)):
        examples = _examples(finding, record_of, min(EACH, left)) if finding.level != "ok" else []
        left -= len(examples)
        findings.append({"finding": finding, "examples": examples})
    counts = Counter(finding.level for finding in report.findings)
    return {
        "site": report.site,
        "fit": report.fit,
        "counts": {level: counts[level] for level in LEVELS},
        "figures": _figures(report),
        "grave": [one for one in findings if one["finding"].level in ("error", "warning")],
        "notes": [one for one in findings if one["finding"].level == "note"],
        "well": [one["finding"] for one in findings if one["finding"].level == "ok"],
    }


def _figures(report: Report) -> list[tuple[str, str]]:
    splits, train = report.figures.get("splits", {}), report.figures.get("train", {})
    text, masks = report.figures.get("text", {}), report.figures.get("masks", {})
    shown = [
        ("Pictures", str(sum(splits.values())), ", ".join(f"{name} {n}" for name, n in splits.items())),
        ("Labelled for training", str(train.get("labelled", 0)), f"of {splits.get('train', 0)}"),
        ("With a sentence", str(text.get("with", 0)), f"{text.get('distinct', 0)} different"),
    ]
    if masks:
        shown.append(("Masks", str(masks["n"]), f"median {masks['median_coverage']:.1%} of the picture"))
    return shown


def _examples(finding: Finding, record_of: Mapping[int, Record], most: int) -> list[dict[str, Any]]:
    rows = [row for row in finding.rows if row in record_of][:most]
    return [
        {"row": row, "picture": _picture(record_of[row]), "text": record_of[row].text, "split": record_of[row].split}
        for row in rows
    ]


def _picture(record: Record) -> str:
    """As a data URL, with the mask's outline where there is one; '' where it can not be read."""
    try:
        picture = np.repeat(read_image(record.image, 1), 3, axis=0) if _is_gray(record) else read_image(record.image, 3)
    except UserError:
        return ""
    pixels = np.rint(picture.transpose(1, 2, 0) * 255).astype(np.uint8)
    scale = SIDE / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    shown = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    edge = _outline(record, pixels.shape[:2], size)
    if edge is not None:
        shown[edge] = OUTLINE
    return data_url(shown)


def _is_gray(record: Record) -> bool:
    return record.image.suffix.lower() in (".dcm", ".nii", ".gz")


def _outline(record: Record, shape: tuple[int, int], size: tuple[int, int]) -> np.ndarray | None:
    try:
        mask = read_mask(record.mask) if record.mask is not None else None
    except UserError:
        return None
    if mask is None or mask.shape != shape:
        return None
    return outline(np.asarray(Image.fromarray((mask > 0).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0)
