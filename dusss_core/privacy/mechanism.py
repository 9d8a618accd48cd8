"""What private training of a phase costs, and which studies it is not possible in.

Both follow from public settings alone, so a site can tell before it looks at a single record.
"""

from __future__ import annotations

from collections.abc import Iterator

from dusss_core.config import TrainingConfig
from dusss_core.objectives import TABLE, misfit, objective_of, with_objective
from dusss_core.phases import Phase
from dusss_core.pretraining import pretraining_of
from dusss_core.privacy.charge import Charge

FEWEST = {"public_negatives": 500, "groups": 1000}
"""Training records below which the noise drowns what pretraining could teach."""


def charge_of(config: TrainingConfig, phase: Phase) -> Charge:
    """What one round of `phase` costs.

    Raises:
        ValueError: private sites take no part in this phase.
    """
    privacy = config.privacy
    if phase == Phase.PRETRAIN and privacy.pretrain == "off":
        raise ValueError("privacy.pretrain is off: no round of it is trained, so none is charged")
    return Charge(privacy.steps_per_round, privacy.sample_rate, privacy.noise_multiplier / sensitivity(config, phase))


def sensitivity(config: TrainingConfig, phase: Phase) -> float:
    """Largest change of a step's sum by one record more or less, in units of C.

    1 where each record is clipped for itself. A record that joins a group turns the group's clipped gradient into
    another one of norm at most C: 2.
    """
    return 2.0 if phase == Phase.PRETRAIN and config.privacy.pretrain == "groups" else 1.0


def why_not(config: TrainingConfig, phase: Phase, records: int) -> str | None:
    """None if a site can train `phase` of this study privately, otherwise the first of the `reasons_against` it."""
    return next(iter(reasons_against(config, phase, records)), None)


def reasons_against(config: TrainingConfig, phase: Phase, records: int) -> list[str]:
    """Why a site cannot train `phase` of this study privately, each reason with what would mend it; none if it can.

    Args:
        records: N, the declared number of the site's training records.
    """
    found = []
    if records < 1:
        found.append("the number of training records is not declared: declare at least 1")
    if config.local_norm:
        found.append("local_norm fits normalisation layers to the site's pictures without noise: set local_norm: false")
    if config.batch_statistics == "estimated":
        found.append(
            "batch_statistics: estimated fits normalisation layers to the site's pictures without noise: set followed"
        )
    if config.personal.kind != "none" and phase == Phase.SEGMENT:
        found.append(
            f"personal: {config.personal.kind} trains a student of the site's own on its pictures without noise, which "
            "no charge of the ledger covers: set personal: none"
        )
    if config.image.mode == "tile":
        found.append("image.mode: tile makes many records of one picture, and each would be hidden alone: use resize")
    return [*found, *(_against_segment(config) if phase == Phase.SEGMENT else _against_pretrain(config, records))]


def _against_segment(config: TrainingConfig) -> Iterator[str]:
    if (objective := objective_of(config)).coupled:
        others = {name: with_objective(config, name) for name in TABLE}
        apart = [name for name, other in others.items() if not objective_of(other).coupled and misfit(other) is None]
        yield f"method.objective: {config.method.objective} {objective.coupling}: choose one of {', '.join(apart)}"
    if config.student.norm != "group":
        yield "student.norm: batch mixes the records of a batch: set student.norm: group"
    if config.privacy.keep_features:
        if config.privacy.student != "head":
            yield "privacy.keep_features: what is kept must not be trained: set privacy.student: head"
        if config.method.objective != "dusss" or config.method.teacher or config.method.text_mask:
            yield (
                "privacy.keep_features: a teacher and text-guided masks need the picture in every step: set "
                "method.preset: supervised, or keep_features: false"
            )


def _against_pretrain(config: TrainingConfig, records: int) -> Iterator[str]:
    kind = config.privacy.pretrain
    if kind == "off":
        yield "privacy.pretrain is off: private sites join from the segmentation phase on"
        return
    if pretraining_of(config).coupled:
        yield (
            f"method.pretraining: {config.method.pretraining} mixes the records of a batch, and no noise hides one of "
            "them: set privacy.pretrain: off"
        )
    if config.vlm.text.tuning != "frozen":
        yield f"vlm.text.tuning: {config.vlm.text.tuning} trains too many parameters under noise: set it to frozen"
    if records < FEWEST[kind]:
        yield (
            f"privacy.pretrain: {kind} teaches nothing with {records} training records, noise outweighs them: "
            f"it needs {FEWEST[kind]}; set privacy.pretrain: off"
        )
