"""The settings of a study that reach a hospital: pictures, method, networks, both training phases.

Typed, with unknown keys refused. Every field is documented where it is defined; the defaults are what measured
best, `preset: paper` is the paper to the letter. No file is read here.
"""

from __future__ import annotations

from dusss_core.config.base import (
    AUTO,
    DEVICE,
    IMAGENET,
    LEAST_BATCH,
    VLM,
    Strict,
)
from dusss_core.config.method import (
    PRESETS,
    MethodConfig,
    ObjectiveName,
    PretrainingName,
)
from dusss_core.config.networks import (
    TEXT_NETWORKS,
    ImageConfig,
    StudentConfig,
    TextConfig,
    VLMConfig,
)
from dusss_core.config.phases import (
    OptimizerConfig,
    PhaseConfig,
    PretrainConfig,
    SegmentConfig,
    UncertaintyConfig,
    ZonesConfig,
)
from dusss_core.config.site import PersonalConfig, PrivateTrainingConfig, RuntimeConfig
from dusss_core.config.training import PAPER_BEYOND_METHOD, TrainingConfig, merged

__all__ = [
    "AUTO",
    "DEVICE",
    "IMAGENET",
    "LEAST_BATCH",
    "PAPER_BEYOND_METHOD",
    "PRESETS",
    "TEXT_NETWORKS",
    "VLM",
    "ImageConfig",
    "MethodConfig",
    "ObjectiveName",
    "OptimizerConfig",
    "PersonalConfig",
    "PhaseConfig",
    "PretrainConfig",
    "PretrainingName",
    "PrivateTrainingConfig",
    "RuntimeConfig",
    "SegmentConfig",
    "Strict",
    "StudentConfig",
    "TextConfig",
    "TrainingConfig",
    "UncertaintyConfig",
    "VLMConfig",
    "ZonesConfig",
    "merged",
]
