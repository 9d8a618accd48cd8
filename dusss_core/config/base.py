"""What all settings share: unknown keys are refused, and what some values are called."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

IMAGENET = "imagenet"
"""In place of a path: weights that an installed package holds."""
VLM = "vlm"
"""In place of a path: the image tower of step 1."""
AUTO = "auto"
"""Chosen at each site, by its device."""


STUDY_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
"""What a study may be called: sites keep folders of that name."""
DEVICE = r"^(auto|cpu|mps|cuda(:\d+)?)$"
"""What a device is called: auto is a GPU where there is one."""
LEAST_BATCH = 2
"""BatchNorm needs two pictures."""


LONGEST_NAME, LONGEST_PATH = 200, 4096
"""Characters of a network's name, which is compared with all that are known, and of a path."""


class Strict(BaseModel):
    """Base of every settings class: unknown keys are errors, values are checked on assignment too, numbers are
    finite, and true or false is none."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes true for 1: `min_records: yes` would open a site further than any number that was meant."""
        values = value.values() if isinstance(value, dict) else [value]
        if any(isinstance(one, bool) for one in values) and _is_number(cls, str(info.field_name)):
            raise ValueError("true or false (yes, no, on and off too), where a number belongs")
        return value


@cache
def _is_number(schema: type[BaseModel], name: str) -> bool:
    """Whether a field holds numbers, and nothing that is true or false."""
    kinds = set(_kinds(schema.model_fields[name].annotation))
    return not kinds.isdisjoint((int, float)) and bool not in kinds


def _kinds(annotation: Any) -> list[type]:
    """The types that a value, or one of a mapping, may have."""
    if get_origin(annotation) is Literal:
        return [type(value) for value in get_args(annotation)]
    if parts := get_args(annotation):
        return [kind for part in parts for kind in _kinds(part)]
    return [annotation]
