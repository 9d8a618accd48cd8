"""A student that is given each picture's sentence, and learns from masks alone: what `preset: supervised` is without
one.

    L = L_sup(z(x, s), y)

A mirrored picture comes with the mirrored sentence; a picture whose sentence cannot be mirrored is not. With
`student.text_dropout` the sentence of a share of the pictures is withheld.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dusss_core.augment import Geometry, weak_view
from dusss_core.config import TrainingConfig
from dusss_core.objectives.objective import Batch, Objective, Values


class SupervisedWithText(Objective):
    """Supervised training with the sentence."""

    networks = frozenset({"early_fusion", "lvit", "vilt"})
    text = "inference"

    @classmethod
    def learns_from(cls, config: TrainingConfig) -> Literal["all", "with_text", "none"]:
        return "none"

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        host, (labelled, _) = self.host, batch
        view, geometry = self.told_view(labelled, draw)
        text = host.words(labelled, draw, geometry.flipped)
        with host.autocast():
            logits = host.student(host.normalise(view), text).float()
        supervised = self.supervised(logits, geometry.apply_mask(host.masks(labelled)))
        return supervised, {"supervised": supervised.detach()}

    def unlabelled_weight(self, share_done: float) -> float:
        return 0.0

    def told_view(self, positions: np.ndarray, draw: torch.Generator) -> tuple[Tensor, Geometry]:
        """Pictures in [0, 1], weakly changed and moved as their sentences can be, and how they were moved."""
        geometry = self.host.geometry_told(positions, draw)
        return weak_view(geometry.apply(self.host.pictures(positions)), draw), geometry
