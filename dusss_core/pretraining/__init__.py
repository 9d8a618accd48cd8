"""The methods of step 1, one file each: what a vision-language model learns from pictures and their sentences.

`method.pretraining` names one of them; the names are those of the table below and nothing else: what comes in a message
is looked up, never imported. A new method is a file with a subclass of `PretrainingMethod`, a line in TABLE, and its
name in `MethodConfig.pretraining`.

`PretrainingMethod` (method.py) says what a method declares and what it is given: `Shown`, a batch while the model looks
at it, and `Seen`, what the model makes of it. What the published methods share is in alignment.py. Views, the text
bank, label supervision of the grounding decoder, schedule and validation belong to the trainer of step 1, for every
method alike.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dusss_core.config import TrainingConfig
    from dusss_core.pretraining.method import PretrainingMethod

TABLE = {
    "dusss": ("dusss", "Dusss"),
    "mgca": ("mgca", "MGCA"),
    "cmitm": ("cmitm", "CMITM"),
    "asg": ("asg", "ASG"),
}
"""Name -> module of this folder, and its class."""


def pretraining_of(config: TrainingConfig) -> type[PretrainingMethod]:
    """The class of the study's pretraining method."""
    module, name = TABLE[config.method.pretraining]
    return getattr(import_module(f"dusss_core.pretraining.{module}"), name)
