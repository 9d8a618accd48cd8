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
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from dusss_core.config import Strict
from dusss_core.errors import UserError
from dusss_core.files import write_text
from dusss_core.seeds import unit_hash

if TYPE_CHECKING:
    import numpy as np

    from sites.synth.picture import Drawing

COLUMNS = (
    "id", "image", "mask", "text", "split", "patient", "labelled",
    "finding_side", "n_findings", "finding_zones", "distractor_zones",
)  # fmt: skip
"""Of manifest.csv. `finding_side`: left, right, both or none. Zones: as `left upper; right lower`."""


class ScannerConfig(Strict):
    """How a hospital's machine renders the same body. All hospitals show air dark and bone bright."""

    gain: float = Field(1.0, gt=0)
    """Contrast: factor on intensities in [0, 1], about the middle grey."""
    gamma: float = Field(1.0, gt=0)
    """Exponent on intensities in [0, 1]; above 1 is darker."""
    level: float = Field(0.0, ge=-0.5, le=0.5)
    """Added to intensities: the background level."""
    noise: float = Field(0.02, ge=0)
    """Standard deviation of the pixel noise, on intensities in [0, 1]."""
    blur: float = Field(0.3, ge=0)
    """Standard deviation of the Gaussian blur, in pixels of a 64 x 64 picture."""
    vignette: float = Field(0.0, ge=0, le=1)
    """Darkening of the corners, as a share."""


class DiseaseConfig(Strict):
    """Which findings a hospital's patients have."""

    upper: float = Field(1.0, gt=0)
    """Relative frequency of the upper zones (of look-alikes too, so that place gives nothing away)."""
    middle: float = Field(1.0, gt=0)
    """Relative frequency of the middle zones."""
    lower: float = Field(1.0, gt=0)
    """Relative frequency of the lower zones."""
    two_findings: float = Field(0.3, ge=0, le=1)
    """Share of the pictures with two findings instead of one."""
    radius_min: float = Field(4.5, gt=1)
    """Smallest radius of a blob, in pixels of a 64 x 64 picture."""
    radius_max: float = Field(7.0, gt=1)
    """Largest radius of a blob, likewise."""

    @model_validator(mode="after")
    def _radii_in_order(self) -> DiseaseConfig:
        if self.radius_min > self.radius_max:
            raise ValueError("radius_min is above radius_max")
        return self


class HospitalConfig(Strict):
    """One synthetic hospital."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """Name of the hospital and of its folder."""
    train: int = Field(160, ge=0)
    """Training pictures."""
    val: int = Field(40, ge=0)
    """Validation pictures."""
    test: int = Field(60, ge=0)
    """Test pictures."""
    label_fraction: float = Field(0.10, ge=0, le=1)
    """Share of the training pictures whose mask may be trained on. All have a mask, to measure with."""
    text_missing: float | None = Field(None, ge=0, le=1)
    """Share of the pictures without a sentence; null: the study's `text_missing`."""
    wording: Literal["terse", "zonal", "report", "plain"] = "terse"
    """Templates and vocabulary of the sentences."""
    scanner: ScannerConfig = ScannerConfig()
    disease: DiseaseConfig = DiseaseConfig()


def _hospitals(n: int) -> list[dict[str, Any]]:
    """`n` hospitals: the three standard ones, then the same with other looks, disease mixes and wordings."""
    return [_hospital(i) for i in range(n)]


class SynthConfig(Strict):
    """A set of synthetic hospitals."""

    hospitals: list[HospitalConfig] = Field(default_factory=lambda: _hospitals(3), min_length=1, validate_default=True)
    """The hospitals; or a number, which makes that many different ones."""
    size: int = Field(64, ge=32)
    """Height and width of the pictures, in pixels."""
    distractors_min: int = Field(2, ge=0, le=4)
    """Fewest look-alikes per picture."""
    distractors_max: int = Field(4, ge=0, le=4)
    """Most look-alikes per picture."""
    contrast: float = Field(1.0, gt=0)
    """How much profile and grain of the finding differ from those of its look-alikes; 1 is the standard difficulty."""
    text_missing: float = Field(0.1, ge=0, le=1)
    """Share of the pictures without a sentence."""
    normal: float = Field(0.0, ge=0, le=1)
    """Share of the pictures without a finding; their sentences say so."""

    @field_validator("hospitals", mode="before")
    @classmethod
    def _count_makes_hospitals(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return _hospitals(value)
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> SynthConfig:
        names = [hospital.name.lower() for hospital in self.hospitals]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"hospitals: two are named '{repeated[0]}'")
        if self.distractors_min > self.distractors_max:
            raise ValueError("distractors_min is above distractors_max")
        return self


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
    from sites.synth.picture import draw
    from sites.synth.text import sentence

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


_STANDARD: tuple[dict[str, Any], ...] = (
    {
        "name": "north",
        "train": 240,
        "val": 40,
        "test": 120,
        "label_fraction": 0.025,
        "wording": "terse",
        "scanner": {"noise": 0.020, "blur": 0.35},
        "disease": {"upper": 0.8, "lower": 1.2, "two_findings": 0.3},
    },
    {
        "name": "harbour",
        "train": 120,
        "val": 40,
        "test": 120,
        "label_fraction": 0.058,
        "wording": "zonal",
        "scanner": {"gain": 0.85, "gamma": 0.8, "noise": 0.030, "blur": 0.25, "vignette": 0.25},
        "disease": {"upper": 1.4, "lower": 0.7, "two_findings": 0.15},
    },
    {
        "name": "valley",
        "train": 120,
        "val": 40,
        "test": 120,
        "label_fraction": 0.05,
        "wording": "report",
        "scanner": {"gain": 1.1, "gamma": 1.25, "level": 0.04, "noise": 0.025, "blur": 0.5},
        "disease": {"middle": 1.3, "two_findings": 0.5, "radius_min": 4.5, "radius_max": 6.5},
    },
)
_MORE_NAMES = ("lakeside", "hilltop", "coast", "forest", "canal", "meadow", "island", "quarry", "heath")


def _hospital(index: int) -> dict[str, Any]:
    """The standard hospitals, then variations of them."""
    standard = _STANDARD[index % len(_STANDARD)]
    if index < len(_STANDARD):
        return standard
    more = index - len(_STANDARD)
    name = _MORE_NAMES[more] if more < len(_MORE_NAMES) else f"hospital_{index + 1:02d}"

    def between(low: float, high: float, purpose: str) -> float:
        return round(low + (high - low) * unit_hash("synth hospital", index, purpose), 3)

    return {
        **standard,
        "name": name,
        "wording": ("plain", "terse", "zonal", "report")[more % 4],
        "scanner": {
            "gain": between(0.85, 1.1, "gain"),
            "gamma": between(0.8, 1.25, "gamma"),
            "level": between(-0.03, 0.05, "level"),
            "noise": between(0.018, 0.03, "noise"),
            "blur": between(0.2, 0.5, "blur"),
            "vignette": between(0.0, 0.3, "vignette"),
        },
        "disease": {
            "upper": between(0.6, 1.4, "upper"),
            "lower": between(0.6, 1.4, "lower"),
            "two_findings": between(0.1, 0.5, "two"),
        },
    }
