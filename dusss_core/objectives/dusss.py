"""DuSSS step 2: text-guided masks and a mean teacher supervise the student, Eq. 12 to 17.

With the switches `method.text_mask` and `method.teacher` it is also plain supervised training, a mean teacher, and
training on text-guided masks alone.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dusss_core.augment import Geometry, strong_view, weak_view
from dusss_core.config import TrainingConfig
from dusss_core.losses import semi_supervised_loss, sigmoid_rampup
from dusss_core.objectives.objective import Batch, Host, Values
from dusss_core.objectives.teacher import WithTeacher
from dusss_core.transfer import sent


class Dusss(WithTeacher):
    """The student sees a strong view of an unlabelled picture, the teacher a weak one; the text-guided mask is moved
    with the picture."""

    text = "train"

    def __init__(self, host: Host):
        super().__init__(host)
        if not self.config.method.teacher:
            self.teacher = None

    @classmethod
    def learns_from(cls, config: TrainingConfig) -> Literal["all", "with_text", "none"]:
        """Without a teacher, a picture without a text-guided mask teaches nothing."""
        if config.method.teacher:
            return "all"
        return "with_text" if config.method.text_mask else "none"

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        host, settings = self.host, self.settings
        labelled, unlabelled = batch
        views, targets = [], {}
        if len(labelled):
            view, mask = self.weak_views((labelled, unlabelled[:0]), draw)
            views.append(view)
        if len(unlabelled):
            geometry = host.geometry(len(unlabelled), draw)
            picture = geometry.apply(host.pictures(unlabelled))
            targets = self._pseudo_targets(picture, unlabelled, geometry, draw)
            views.append(strong_view(picture, draw, settings.strong))
        with host.autocast():
            logits = host.student(host.normalise(torch.cat(views))).float()

        total, figures = logits.new_zeros(()), {}
        if len(labelled):
            supervised = self.supervised(logits[: len(labelled)], mask)
            total, figures["supervised"] = total + supervised, supervised.detach()
        if len(unlabelled):
            semi, parts = semi_supervised_loss(
                logits[len(labelled) :],
                **targets,
                method=self.config.method,
                confidence=settings.confidence,
                dice=settings.dice,
                teacher_ramp=sigmoid_rampup(share_done, settings.teacher_rampup),
                guided_weight=self._guided_weight(len(labelled), len(unlabelled)),
                teacher_only_weight=sigmoid_rampup(share_done, settings.rampup),
                text_share=host.text_share,
            )
            total, figures["semi"] = total + settings.weight_semi * semi, semi.detach()
            figures.update({f"semi_{name}": value for name, value in parts.items()})
        return total, figures

    def unlabelled_weight(self, share_done: float) -> float:
        """Text-guided masks are as good at the start as later; what the teacher alone labels is ramped up (without a
        teacher: nothing)."""
        guided = self.host.text_share if self.host.guided[self.host.unlabelled].any() else 0.0
        ramp = sigmoid_rampup(share_done, self.settings.rampup) if self.teacher is not None else 0.0
        return self.settings.weight_semi * (guided + (1 - guided) * ramp)

    def _guided_weight(self, n_labelled: int, n_unlabelled: int) -> float:
        return n_unlabelled / n_labelled if self.settings.guided_as_labelled and n_labelled else 1.0

    def _pseudo_targets(
        self, picture: Tensor, positions: np.ndarray, geometry: Geometry, draw: torch.Generator
    ) -> dict[str, Tensor | None]:
        """What supervises the student on unlabelled pictures: the teacher on a weak view, and the text-guided masks."""
        host, teacher_logits = self.host, None
        if self.teacher is not None:
            with host.autocast():
                teacher_logits = self.teacher(host.normalise(weak_view(picture, draw))).float()
        (has_text,) = sent(picture.device, torch.from_numpy(host.guided[positions]))
        return {
            "teacher_logits": teacher_logits,
            "text_logits": host.text_masks(positions, geometry),
            "has_text": has_text,
        }
