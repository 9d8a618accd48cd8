"""The two phases of a study, and all that differs between them but the training itself.

In messages, in file names and in seeds a phase is its value, `pretrain` or `segment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    from dusss_core.config import PhaseConfig, TrainingConfig
    from dusss_core.records import Split


class Phase(StrEnum):
    """A phase; iterating over the class gives them in the order in which they run."""

    PRETRAIN = "pretrain"
    """Step 1: the vision-language model, from pictures and their sentences."""
    SEGMENT = "segment"
    """Step 2: the student, from pictures, masks, and the text-guided masks of step 1's final model."""

    @property
    def title(self) -> str:
        """For people."""
        return "Pretraining (step 1)" if self is Phase.PRETRAIN else "Segmentation (step 2)"

    @property
    def network(self) -> Literal["vlm", "student"]:
        """What is trained, averaged and, when the phase is over, final."""
        return "vlm" if self is Phase.PRETRAIN else "student"

    @property
    def reads_sentences(self) -> bool:
        """Whether training needs the site's sentences, and the text encoder."""
        return self is Phase.PRETRAIN

    @property
    def takes_masks(self) -> bool:
        """Whether training takes text-guided masks, made by the final vision-language model."""
        return self is Phase.SEGMENT

    def settings(self, config: TrainingConfig) -> PhaseConfig:
        """Its part of the study's settings."""
        return config.pretrain if self is Phase.PRETRAIN else config.segment

    def usable(self, train: Split) -> np.ndarray:
        """N bool: training records that it can show to its network."""
        import numpy as np

        return train.has_text if self is Phase.PRETRAIN else np.ones(len(train), bool)

    def weight(self, counts: Mapping[str, int]) -> int:
        """A site's weight in the mean: its training pictures (not tiles) that the phase uses."""
        if self is Phase.PRETRAIN:
            return counts["n_text"]
        return counts["n_labelled"] + counts["n_unlabelled"]
