"""What all settings share: unknown keys are refused, and what some values are called."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

IMAGENET = "imagenet"
"""In place of a path: weights that an installed package holds."""
VLM = "vlm"
"""In place of a path: the image tower of step 1."""
AUTO = "auto"
"""Chosen at each site, by its device."""


DEVICE = r"^(auto|cpu|mps|cuda(:\d+)?)$"
"""What a device is called: auto is a GPU where there is one."""
LEAST_BATCH = 2
"""BatchNorm needs two pictures."""


LONGEST_NAME, LONGEST_PATH = 200, 4096
"""Characters of a network's name, which is compared with all that are known, and of a path."""


class Strict(BaseModel):
    """Base of every settings class: unknown keys are errors, values are checked on assignment too, numbers are
    finite."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
