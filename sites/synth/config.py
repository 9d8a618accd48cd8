"""The settings of the synthetic hospitals, and the ones that there are without any."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dusss_core.config import Strict
from dusss_core.seeds import unit_hash

MOST = 1000
"""Hospitals that a number makes, at most: each is checked, and a number of fifteen digits would never end."""


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
    """The hospitals; or a number, 1000 at most, which makes that many different ones."""
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
            if not 1 <= value <= MOST:
                raise ValueError(f"{value} hospitals: from 1 to {MOST} can be made by their number")
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
