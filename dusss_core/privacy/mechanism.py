"""What private training of a phase costs, and which studies it is not possible in.

Both follow from public settings alone, so a site can tell before it looks at a single record.
"""

from __future__ import annotations

from typing import Literal

from dusss_core.config import TrainingConfig
from dusss_core.privacy.charge import Charge

Phase = Literal["pretrain", "segment"]

FEWEST = {"public_negatives": 500, "groups": 1000}
"""Training records below which the noise drowns what pretraining could teach."""


def charge_of(config: TrainingConfig, phase: Phase) -> Charge:
    """What one round of `phase` costs.

    Raises:
        ValueError: private sites take no part in this phase.
    """
    privacy = config.privacy
    if phase == "pretrain" and privacy.pretrain == "off":
        raise ValueError("privacy.pretrain is off: no round of it is trained, so none is charged")
    return Charge(privacy.steps_per_round, privacy.sample_rate, privacy.noise_multiplier / sensitivity(config, phase))


def sensitivity(config: TrainingConfig, phase: Phase) -> float:
    """Largest change of a step's sum by one record more or less, in units of C.

    1 where each record is clipped for itself. A record that joins a group turns the group's clipped gradient into
    another one of norm at most C: 2.
    """
    return 2.0 if phase == "pretrain" and config.privacy.pretrain == "groups" else 1.0


def why_not(config: TrainingConfig, phase: Phase, records: int) -> str | None:
    """None if a site can train `phase` of this study privately, otherwise the reason and what would mend it.

    Args:
        records: N, the declared number of the site's training records.
    """
    if records < 1:
        return "the number of training records is not declared: declare at least 1"
    if config.local_norm:
        return "local_norm fits normalisation layers to the site's pictures without noise: set local_norm: false"
    if config.image.mode == "tile":
        return "image.mode: tile makes many records of one picture, and each would be hidden alone: use resize"
    return _why_not_segment(config) if phase == "segment" else _why_not_pretrain(config, records)


def _why_not_segment(config: TrainingConfig) -> str | None:
    if config.student.norm != "group":
        return "student.norm: batch mixes the records of a batch: set student.norm: group"
    return None


def _why_not_pretrain(config: TrainingConfig, records: int) -> str | None:
    kind = config.privacy.pretrain
    if kind == "off":
        return "privacy.pretrain is off: private sites join from the segmentation phase on"
    if config.vlm.text.tuning != "frozen":
        return f"vlm.text.tuning: {config.vlm.text.tuning} trains too many parameters under noise: set it to frozen"
    if records < FEWEST[kind]:
        return (
            f"privacy.pretrain: {kind} teaches nothing with {records} training records, noise outweighs them: "
            f"it needs {FEWEST[kind]}; set privacy.pretrain: off"
        )
    return None
