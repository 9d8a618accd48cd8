"""What step 1 is worth as a start: the student's encoder is the image tower, and learns from labelled pictures alone.

That is how published methods of step 1 are measured in their own papers. Step 1 sees no mask here, and no text-guided
mask is made. `transfer_start` is the control: the same student from the same start (public weights, or the same random
ones), without step 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.grid.methods.presets import train
from dusss_core.config import VLM, merged

if TYPE_CHECKING:
    from benchmarks.grid.cell import Cell
    from benchmarks.grid.trial import Trained, Trial

_LABELS_ALONE = {"preset": "supervised", "grounding_supervision": False, "grounding_consistency": False}
_CLIP = {**_LABELS_ALONE, "sss": False, "dcl": False, "ltg": False}

METHODS: dict[str, dict[str, Any]] = {
    "clip_transfer": {"method": _CLIP},
    "mgca_transfer": {"method": {**_LABELS_ALONE, "pretraining": "mgca"}},
    "cmitm_transfer": {"method": {**_LABELS_ALONE, "pretraining": "cmitm"}},
    "asg_transfer": {"method": {**_LABELS_ALONE, "pretraining": "asg"}},
    "transfer_start": {"method": _CLIP, "pretrain": {"rounds": 0}},
}
"""Name -> what it changes of the study beside the student's encoder, key by key."""


def changes_of(cell: Cell) -> dict[str, Any]:
    """What the cell's method changes of its study: the student's encoder is the network of the cell's image tower."""
    encoder = cell.base()["vlm"]["image_encoder"]
    return merged(METHODS[cell.method], {"student": {"encoder": encoder, "weights": VLM}})


def run(trial: Trial) -> Trained:
    """Both steps, with the image tower between them."""
    return train(trial, changes_of(trial.cell))
