"""Synthetic hospitals: stylised chest films whose sentences tell the finding from its look-alikes.

Every picture shows several blobs of the same sizes, brightness and places. One or two are the finding
(masked), the others are not. The finding differs by the conjunction of three faint properties of its look
(`sites.synth.picture`), which takes many labels to learn; the sentence names the zones of the lungs where it
lies, and no look-alike lies in a named zone, so with text a few labels do. Hospitals differ in scanner,
disease mix, share of labels and wording. Everything derives from (seed, hospital, record).
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dusss_core.errors import UserError
from dusss_core.files import write_text
from dusss_core.seeds import unit_hash
from sites.synth.config import HospitalConfig, SynthConfig
from sites.synth.picture import draw
from sites.synth.text import sentence

if TYPE_CHECKING:
    import numpy as np

    from sites.synth.picture import Drawing

COLUMNS = (
    "id", "image", "mask", "text", "split", "patient", "labelled",
    "finding_side", "n_findings", "finding_zones", "distractor_zones",
)  # fmt: skip
"""Of manifest.csv. `finding_side`: left, right, both or none. Zones: as `left upper; right lower`."""


def write_hospitals(folder: Path, config: SynthConfig, seed: int) -> list[Path]:
    """Write one folder per hospital: manifest.csv, images/*.png (8-bit grey) and masks/*.png (0 and 255).

    The manifest is written last, so that a folder with a manifest is whole. Files that stand there already
    are written over; the same arguments give the same bytes.

    Returns:
        The manifests, in the order of `config.hospitals`.

    Raises:
        UserError: the file system refused.
    """
    return [_write_hospital(Path(folder) / hospital.name, config, hospital, seed) for hospital in config.hospitals]


def _write_hospital(folder: Path, config: SynthConfig, hospital: HospitalConfig, seed: int) -> Path:
    manifest = folder / "manifest.csv"
    try:
        manifest.unlink(missing_ok=True)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "masks").mkdir(exist_ok=True)
        records = _records(hospital)
        ids = [record["id"] for record in records]
        missing = config.text_missing if hospital.text_missing is None else hospital.text_missing
        labelled = _lowest("label", ids[: hospital.train], math.ceil(hospital.label_fraction * hospital.train))
        silent = _lowest("text", ids, round(missing * len(ids)))
        normal = _lowest("normal", ids, round(config.normal * len(ids)))
        for record in records:
            name, names = record["id"], (seed, hospital.name, record["id"])
            drawing = draw(
                config,
                hospital.disease,
                hospital.scanner,
                patient=(seed, hospital.name, record["patient"]),
                record=names,
                normal=name in normal,
            )
            _write_png(folder / record["image"], drawing.image)
            _write_png(folder / record["mask"], drawing.mask)
            if name not in silent:
                record["text"] = sentence(hospital.wording, drawing.findings, drawing.radius, names)
            record["labelled"] = int(record["split"] != "train" or name in labelled)
            record.update(_places(drawing))
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: could not be written: {error.strerror or error}",
            "free disk space or choose a folder that can be written to",
        ) from error
    write_text(manifest, _csv(records))
    return manifest


def _records(hospital: HospitalConfig) -> list[dict[str, Any]]:
    """One row per picture, in order of id, each patient's pictures (one to three) in one split."""
    records: list[dict[str, Any]] = []
    patient = 0
    for split in ("train", "val", "test"):
        left = getattr(hospital, split)
        while left > 0:
            patient += 1
            pictures = min(left, 1 + int(3 * unit_hash("synth patient", hospital.name, patient)))
            left -= pictures
            for _ in range(pictures):
                name = f"{hospital.name}-{len(records) + 1:05d}"
                records.append(
                    {
                        "id": name,
                        "image": f"images/{name}.png",
                        "mask": f"masks/{name}.png",
                        "text": "",
                        "split": split,
                        "patient": f"{hospital.name}-p{patient:04d}",
                    }
                )
    return records


def _lowest(purpose: str, ids: list[str], n: int) -> set[str]:
    """The `n` of `ids` whose hashes for that purpose are the lowest."""
    return set(sorted(ids, key=lambda name: unit_hash(purpose, name))[:n])


def _places(drawing: Drawing) -> dict[str, Any]:
    sides = sorted({side for side, _ in drawing.findings})
    return {
        "finding_side": {0: "none", 1: "".join(sides), 2: "both"}[len(sides)],
        "n_findings": len(drawing.findings),
        "finding_zones": "; ".join(map(" ".join, drawing.findings)),
        "distractor_zones": "; ".join(map(" ".join, drawing.distractors)),
    }


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path, compress_level=1)


def _csv(records: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
