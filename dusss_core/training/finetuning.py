"""Fine-tuning: a site's own steps from the final student, at the site alone (`personal: finetune`).

It goes on from the final student and keeps what comes of it; with `labels_too` a second one learns from labels alone,
and the site keeps the better of the two on its validation pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dusss_core.config import MethodConfig, TrainingConfig
from dusss_core.errors import UserError
from dusss_core.models.weights import on_cpu
from dusss_core.objectives import objective_of, reads_sentences, with_objective
from dusss_core.objectives.objective import Batch, Values
from dusss_core.phases import Phase
from dusss_core.records import Split
from dusss_core.text.bank import TextBank
from dusss_core.training.evaluation import at_its_best
from dusss_core.training.personal import alone
from dusss_core.training.segment import Segmenter
from dusss_core.training.sharing import no_own_student
from dusss_core.training.statistics import with_own_statistics


class FineTuner(Segmenter):
    """Trains the final student on: the end of the phase goes on, so pseudo-labels weigh what they weighed there."""

    text_share = 1.0

    def seed_names(self, round: int) -> tuple[object, ...]:
        return *super().seed_names(round), "finetune"

    def statistics_fixed(self, round: int) -> bool:
        return self.config.fixed_statistics

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        return super().losses(batch, draw, 1.0)

    def pace(self, share_done: float) -> float:
        return super().pace(1.0)

    def after_step(self, share_done: float) -> None:
        super().after_step(1.0)


def fine_tuned(
    config: TrainingConfig,
    site: str,
    train: Split,
    student: Mapping[str, Tensor],
    *,
    val: Split | None = None,
    most_steps: int | None = None,
    text_logits: np.ndarray | None = None,
    text_share: float = 1.0,
    text: TextBank | None = None,
    device: str | torch.device = "cpu",
    progress: Any = None,
) -> dict[str, Tensor]:
    """The final student after `personal.steps` more steps on a site's pictures, with fresh moments and a copy of it as
    teacher; learning rates go up and down as in a phase of so many steps. After 0 steps: the final student.

    Args:
        student: a whole student's tensors (under FedBN with the site's own layers).
        val: pictures by which it is decided under FedBN whether statistics stay as they were followed in these steps
            (`at_its_best`); None: they are estimated anew.
        text_share: what text-guided masks weigh, as in the phase.
        text: features of the site's sentences, for a student that is given them.
        most_steps: what the site allows; None: no limit.

    Raises:
        UserError: the site has nothing to learn it from.
        NotFinite: the loss is not finite.
    """
    if reason := no_own_student(config, train):
        raise UserError(reason)
    personal, optimizer = config.personal, config.segment.optimizer
    optimizer = optimizer.model_copy(update={"lr": personal.lr_ratio * optimizer.lr})
    own = alone(config, segment=config.segment.model_copy(update={"rounds": 1, "optimizer": optimizer}))
    given = {"text_logits": text_logits, "text": text, "device": device, "progress": progress}
    trainer = FineTuner(own, site, train, train, **given)
    trainer.text_share = text_share
    trainer.steps_per_round = personal.steps if most_steps is None else min(personal.steps, most_steps)
    trainer.load_shared(dict(student))
    trainer.train_round(1)
    tuned = on_cpu(trainer.student.state_dict(), copies=True)
    if val is None:
        return with_own_statistics(config, Phase.SEGMENT, tuned, train, text, device)
    return at_its_best(config, tuned, train, val, device, text)


def on_labels_alone(config: TrainingConfig) -> TrainingConfig | None:
    """The settings of the second student of `personal.labels_too`, which is given sentences if the first one is; None
    where there is none to train: the method has nothing but labels itself, or its network parts that nothing else
    trains (`Objective.builds`)."""
    objective = objective_of(config)
    if not config.personal.labels_too or objective.learns_from(config) == "none" or objective.builds(config):
        return None
    if reads_sentences(config):
        return with_objective(config, "supervised_with_text")
    return config.model_copy(update={"method": MethodConfig(preset="supervised")})
