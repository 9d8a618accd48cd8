"""Step 2 under record-level differential privacy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from dusss_core.build import Student
from dusss_core.privacy.frozen import FrozenFeatures
from dusss_core.privacy.trainer import PrivateTraining
from dusss_core.training.segment import Segmenter


class PrivateSegmenter(PrivateTraining, Segmenter):
    """Trains the student on one union of labelled and unlabelled records.

    A labelled record costs the supervised loss, an unlabelled one w(t) times its own L_semi, where w(t) follows from
    the step alone. How many of either kind are drawn changes no record's weight: means over the labelled and the
    unlabelled records of a draw would couple them.

    Text-guided masks must come from a vision-language model that is public, was trained elsewhere, or was paid for
    from the same budget.
    """

    def kinds(self) -> tuple[np.ndarray, np.ndarray]:
        return self.labelled, self.unlabelled

    def load_shared(self, tensors: dict[str, Tensor]) -> None:
        super().load_shared(tensors)
        self._features.follow()

    def loss_of(self, unit: np.ndarray, share_done: float) -> Tensor | None:
        if not self.config.privacy.keep_features:
            return super().loss_of(unit, share_done)
        if not self.train.labelled[unit[0]]:
            return None
        features = self._features.of(unit)
        return self.objective.supervised(self._features.logits(features), features.mask)

    def kept(self) -> Iterator[Tensor]:
        yield from super().kept()
        yield from self._features.kept()

    @cached_property
    def _features(self) -> FrozenFeatures:
        return FrozenFeatures(self.student, self._view)

    def _view(self, unit: np.ndarray) -> tuple[Tensor, Tensor]:
        view, mask = self.objective.weak_views((unit, unit[:0]), self.randomness.generator())
        return self.normalise(view), mask

    def prepare(self, model: Student) -> None:
        trained = self.config.privacy.student
        if trained == "all":
            return
        model.requires_grad_(False)
        # every decoder that the objective compares, or the main one would learn to agree with what nobody has trained
        decoders = [model, *getattr(model, "others", ())]
        norms = [layer for layer in model.modules() if isinstance(layer, nn.GroupNorm)]
        parts = {"decoder": [decoder.up for decoder in decoders], "norms": norms, "head": []}[trained]
        for part in (*parts, *(decoder.head for decoder in decoders)):
            part.requires_grad_(True)
