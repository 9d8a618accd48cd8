"""What the private trainers of both phases share.

They are the phase's own trainer with another way to a gradient: a Poisson draw in place of a batch, records one at a
time, noise. Everything after the noised sum, the optimiser, the EMA teacher, FedProx, weight decay, is post-processing
of what was paid for. Nothing else that depends on records leaves: no losses, no counts, no validation figures.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dusss_core.config import TrainingConfig
from dusss_core.errors import UserError
from dusss_core.models.weights import on_cpu
from dusss_core.privacy.mechanism import why_not
from dusss_core.privacy.randomness import Randomness
from dusss_core.privacy.step import private_gradient
from dusss_core.seeds import global_seed
from dusss_core.training.trainer import PhaseTrainer

Unit = np.ndarray
"""Positions whose gradient is clipped as one: a record (as often as it has views), or the records of a group."""


class PrivateTraining(PhaseTrainer):
    """Mixin before a phase's trainer: `class PrivateSegmenter(PrivateTraining, Segmenter)`.

    A round costs `dusss_core.privacy.mechanism.charge_of`, to be paid before `train_round`. It does not repeat: its
    randomness comes from the operating system, whatever the study's seed.

    Args:
        records: N, the declared number of the site's training records. It divides the noised sum, so it must be a
            public constant, never counted anew.

    Raises:
        UserError: the study can not be trained privately; the text says why, and what would mend it.
    """

    def __init__(self, config: TrainingConfig, *args, records: int, **kwargs):
        if reason := why_not(config, self.phase, records):
            raise UserError(f"private training, phase {self.phase}: {reason}")
        super().__init__(config, *args, **kwargs)
        self.randomness = Randomness()
        # whether the site has a mask at all must change no other record's part
        self.handed_on = ()
        self.steps_per_round = config.privacy.steps_per_round
        self.expected = config.privacy.sample_rate * records

    # What a subclass provides.

    @abstractmethod
    def kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the records that are labelled, and of the others that teach something."""

    # What replaces the phase's own.

    def batches(self, steps: int, draw: torch.Generator) -> Iterator[list[Unit]]:
        """Poisson draws. `draw` is left alone: it follows from the study's seed, which everybody knows."""
        for _ in range(steps):
            yield self.units(np.flatnonzero(self._drawn()))

    def units(self, drawn: np.ndarray) -> list[Unit]:
        """What is clipped as one: here each drawn record, with its views."""
        return [np.repeat(position, self.config.privacy.views) for position in drawn]

    def loss_of(self, unit: Unit, share_done: float) -> Tensor | None:
        """The phase's loss of one unit, which it averages over the unit's views. It sees nothing of other units."""
        labelled, other = (unit[of_kind[unit]] for of_kind in self._of_kind)
        if not len(labelled) and not len(other):
            return None
        draw = self.randomness.generator()
        # layers that draw, a teacher's dropout: from a stream that went on from unit to unit, one record more would
        # change what all that come after it see
        with global_seed(draw.initial_seed(), device=self.device):
            return self.losses((labelled, other), draw, share_done)[0]

    @cached_property
    def _of_kind(self) -> list[np.ndarray]:
        """`kinds` as one flag for each training record."""
        return [np.isin(np.arange(len(self.train)), kind) for kind in self.kinds()]

    def pace(self, share_done: float) -> float:
        """Always 1: a pace that follows from whether the site has labels would tell of the one that has."""
        return 1.0

    def set_gradients(self, batch: list[Unit], draw, share_done, anchor) -> dict[str, Tensor]:
        # fixed statistics where there are any, no dropout
        self.model.eval()
        privacy = self.config.privacy
        private_gradient(
            self.model,
            lambda unit: self.loss_of(unit, share_done),
            batch,
            clip=privacy.clip,
            noise_multiplier=privacy.noise_multiplier,
            expected=self.expected,
            randomness=self.randomness,
        )
        self._pull_towards(anchor)
        return {}

    def validate(self) -> dict[str, float]:
        """Nothing: figures of the validation pictures tell of their patients too, and nobody has paid for that."""
        return {}

    def shared(self, *, copies: bool = True) -> dict[str, Tensor]:
        """What travels: the whole model, what is frozen here as it came, since other sites may train it."""
        return on_cpu(self.model.state_dict(), copies)

    def private(self, *, copies: bool = True) -> dict[str, Tensor]:
        return {**super().private(copies=copies), MARK: torch.tensor(True)}

    def load_private(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `private` gave.

        Raises:
            UserError: the state comes from training without noise. A teacher that has seen records without it would
                pass them on.
        """
        if MARK not in tensors:
            raise UserError(
                "this site's state of the study was trained without differential privacy",
                "start the study anew, or under another name",
            )
        super().load_private(tensors)

    def _drawn(self) -> np.ndarray:
        return self.randomness.poisson_draw(len(self.train), self.config.privacy.sample_rate)


MARK = "trained_privately"
"""In the private state of a site: everything in it is post-processing of noised sums."""
