"""The methods of step 2, one file each: what a student learns from labelled and unlabelled pictures.

`method.objective` names one of them. The names are those of the table below and nothing else: what comes in a message
is looked up, never imported. A new method is a file with a subclass of `Objective`, a line in TABLE, and its name in
`MethodConfig.objective`.

`Objective` (objective.py) says what a method declares, and `Host` what it gets from the trainer of step 2, which owns
pictures, masks, geometry, views, schedule and private state.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from dusss_core.config import TEXT_NETWORKS

if TYPE_CHECKING:
    from dusss_core.config import TrainingConfig
    from dusss_core.objectives.objective import Objective

TABLE = {
    "dusss": ("dusss", "Dusss"),
    "mean_teacher_mse": ("mean_teacher_mse", "MeanTeacherMSE"),
    "mcnet": ("mcnet", "MCNet"),
    "mcnet_v1": ("mcnet", "MCNetV1"),
    "cct": ("cct", "CCT"),
    "bcp": ("bcp", "BCP"),
    "ssnet": ("ssnet", "SSNet"),
    "ucmt": ("ucmt", "UCMT"),
    "fixmatch": ("fixmatch", "FixMatch"),
    "unimatch": ("unimatch", "UniMatch"),
    "fedsemidg": ("fedsemidg", "FedSemiDG"),
    "early_fusion": ("early_fusion", "EarlyFusion"),
    "supervised_with_text": ("supervised_with_text", "SupervisedWithText"),
    "lvit": ("lvit", "LViT"),
    "lvit_balanced": ("lvit", "LViTBalanced"),
}
"""Name -> module of this folder, and its class."""


def objective_of(config: TrainingConfig) -> type[Objective]:
    """The class of the study's objective."""
    module, name = TABLE[config.method.objective]
    return getattr(import_module(f"dusss_core.objectives.{module}"), name)


def reads_sentences(config: TrainingConfig) -> bool:
    """Whether the student is given sentences, in training and where it is used; `dusss` shows any student pictures
    alone."""
    if config.method.objective == "dusss" or config.student.kind not in TEXT_NETWORKS:
        return False
    return objective_of(config).text == "inference"


def misfit(config: TrainingConfig) -> str | None:
    """Why the study's objective and network do not go together; None if they do."""
    if config.method.objective == "dusss":
        return None  # it asks nothing of a network but logits; and the usual study needs no torch to be read
    objective, network = objective_of(config), config.student.kind
    if network in objective.networks:
        if reads_sentences(config) and config.vlm.text.tuning != "frozen":
            return (
                f"method.objective: {config.method.objective} reads features of a frozen text encoder: set "
                f"vlm.text.tuning: frozen (now {config.vlm.text.tuning})"
            )
        return None
    fitting = ", ".join(name for name in TABLE if network in objective_of(with_objective(config, name)).networks)
    return (
        f"method.objective: {config.method.objective} does not work on {network}: it needs one of "
        f"{', '.join(sorted(objective.networks))} (student.network, and student.encoder: null for both); on {network} "
        f"work {fitting}"
    )


def with_objective(config: TrainingConfig, name: str) -> TrainingConfig:
    """The study as it is, with another objective; nothing is checked."""
    return config.model_copy(update={"method": config.method.model_copy(update={"objective": name})})
