"""Everything that a site needs to take part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from dusss_core.config.base import STUDY_NAME, Strict
from dusss_core.config.method import MethodConfig
from dusss_core.config.networks import ImageConfig, StudentConfig, VLMConfig
from dusss_core.config.phases import PretrainConfig, SegmentConfig
from dusss_core.config.site import PersonalConfig, PrivateTrainingConfig, RuntimeConfig


class TrainingConfig(Strict):
    """Everything that a site needs to take part in a study. Sent with every message; checked again at the site."""

    study: str = Field("study", pattern=STUDY_NAME)
    """Name; the site's private state is keyed by it."""
    seed: int = 1
    """All randomness derives from (seed, site, phase, round)."""
    image: ImageConfig = ImageConfig()
    method: MethodConfig = MethodConfig()
    vlm: VLMConfig = VLMConfig()
    student: StudentConfig = StudentConfig()
    pretrain: PretrainConfig = PretrainConfig()
    segment: SegmentConfig = SegmentConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    privacy: PrivateTrainingConfig = PrivateTrainingConfig()
    local_norm: bool = False
    """FedBN: normalisation layers stay at the site."""
    batch_statistics: Literal["followed", "estimated"] = "followed"
    """Running statistics of batch norm layers that a site sends after a round: those that it followed while it trained,
    on moved and recoloured views, of labelled pictures alone where the method sees no others; or estimated, for the
    weights as they then are, on 64 of its training pictures as they are. With `local_norm` they never leave the site,
    and are estimated whenever a global model arrives."""
    fixed_statistics: bool = False
    """FixBN: in the second half of a phase's rounds the statistics of the first half stay as they are, and every site
    trains with them in place of those of its own batches."""
    personal: PersonalConfig = PersonalConfig()
    """What else of the student is a site's own."""
    prox_mu: float = Field(0.0, ge=0)
    """FedProx: weight of half the squared distance from the round's global model; set by `federation.strategy`."""

    @model_validator(mode="after")
    def _patches_fill_the_picture(self) -> TrainingConfig:
        if self.student.kind == "vilt" and self.image.size % self.student.patch:
            raise ValueError(
                f"student.patch: {self.student.patch} does not divide image.size: {self.image.size}: use patch: 16, or "
                "another size"
            )
        return self

    @model_validator(mode="after")
    def _fixed_statistics_are_shared(self) -> TrainingConfig:
        if self.fixed_statistics and self.local_norm:
            raise ValueError(
                "fixed_statistics is for layers that the sites share, and local_norm: true keeps them at each "
                "site: choose one of the two"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _paper_reaches_beyond_the_method(cls, values: Any) -> Any:
        """`method: {preset: paper}` means the paper's grounding decoder and supervised loss as well."""
        if not isinstance(values, dict):
            return values
        method = values.get("method")
        if isinstance(method, dict) and method.get("preset") == "paper":
            for section, literal in PAPER_BEYOND_METHOD.items():
                given = values.get(section, {})
                if isinstance(given, dict):
                    values = {**values, section: merged(literal, given)}
        return values


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` key by key, at any depth."""
    inner = {
        key: merged(values[key], change)
        for key, change in changes.items()
        if isinstance(change, Mapping) and isinstance(values.get(key), Mapping)
    }
    return {**values, **changes, **inner}


PAPER_BEYOND_METHOD: dict[str, dict[str, Any]] = {
    "vlm": {
        "skips": False,
        "cross_attention": False,
        "mirror": False,
        "mask_bias": 0.0,
        "cells": 0,
        "text": {"standardise": False, "pooling": "query"},
    },
    "student": {"mask_bias": None},
    "segment": {"dice": False, "guided_as_labelled": False, "teacher_rampup": 0.0},
}
