"""Step 2: text-guided semi-supervised segmentation with a mean teacher, Eq. 12 to 17."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dusss_core.augment import Geometry, strong_view, weak_view
from dusss_core.config import TrainingConfig
from dusss_core.files import with_prefix
from dusss_core.losses.schedules import sigmoid_rampup
from dusss_core.losses.segmentation import semi_supervised_loss, supervised_loss
from dusss_core.models import Teacher, build_student
from dusss_core.phases import Phase
from dusss_core.records import Split
from dusss_core.training.evaluation import score_model
from dusss_core.training.sampling import two_stream_batches
from dusss_core.training.sharing import load_tensors
from dusss_core.training.trainer import PhaseTrainer, Progress

OUTSIDE = -8.0
"""Mask logit of what a shifted or turned picture does not show."""


class Segmenter(PhaseTrainer):
    """Trains the student on a site's labelled and unlabelled pictures.

    Args:
        text_logits: N x classes x H x W, float16, text-guided masks of the training split as logits, NaN for records
            without text; None where the method or the site has none.
    """

    phase = Phase.SEGMENT

    def __init__(
        self,
        config: TrainingConfig,
        site: str,
        train: Split,
        val: Split,
        *,
        text_logits: np.ndarray | None = None,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
    ):
        super().__init__(
            config,
            config.segment,
            site,
            build_student(config),
            train,
            val,
            device,
            progress,
            usable=len(train),
        )
        self.student = self.model
        self.teacher = Teacher(self.student) if config.method.teacher else None
        self.text_logits = text_logits if config.method.text_mask else None
        guided = ~np.isnan(text_logits[:, 0, 0, 0]) if self.text_logits is not None else np.zeros(len(train), bool)
        self.guided = guided
        self.labelled = np.flatnonzero(train.labelled)
        # without a teacher, a picture without a text-guided mask teaches nothing
        useful = ~train.labelled & (guided | config.method.teacher)
        self.unlabelled = np.flatnonzero(useful) if config.method.semi_supervised else np.array([], dtype=np.int64)

    def load_shared(self, tensors: dict[str, Tensor]) -> None:
        super().load_shared(tensors)
        if self.teacher is not None and self.step == 0:
            # the teacher starts as a copy of the first student that the site sees
            load_tensors(self.teacher.model, self.student.state_dict())

    def private(self) -> dict[str, Tensor]:
        state = super().private()
        if self.teacher is not None:
            state.update(
                {
                    f"teacher.{name}": value.detach().cpu().clone()
                    for name, value in self.teacher.model.state_dict().items()
                }
            )
        return state

    def load_private(self, tensors: dict[str, Tensor]) -> None:
        super().load_private(tensors)
        if self.teacher is not None:
            load_tensors(self.teacher.model, with_prefix(tensors, "teacher."))

    def batches(self, steps: int, draw: torch.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return two_stream_batches(
            self.labelled, self.unlabelled, self.settings.batch, self.settings.labelled_share, steps, draw
        )

    def losses(self, batch, draw, share_done) -> tuple[Tensor, dict[str, float]]:
        labelled, unlabelled = batch
        settings = self.settings
        views, targets = [], {}
        if len(labelled):
            geometry = self._geometry(len(labelled), draw)
            views.append(weak_view(geometry.apply(self.pictures(labelled)), draw))
            mask = geometry.apply_mask(self.masks(labelled))
        if len(unlabelled):
            geometry = self._geometry(len(unlabelled), draw)
            picture = geometry.apply(self.pictures(unlabelled))
            targets = self._pseudo_targets(picture, unlabelled, geometry, draw)
            views.append(strong_view(picture, draw, settings.strong))
        with self.autocast():
            logits = self.student(self.normalise(torch.cat(views))).float()

        total, figures = logits.new_zeros(()), {}
        if len(labelled):
            supervised = supervised_loss(logits[: len(labelled)], mask, dice=settings.dice)
            total, figures["supervised"] = total + supervised, supervised.item()
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
            )
            total, figures["semi"] = total + settings.weight_semi * semi, semi.item()
            figures.update({f"semi_{name}": value.item() for name, value in parts.items()})
        return total, figures

    def after_step(self) -> None:
        if self.teacher is not None:
            self.teacher.follow(self.student, self.step, self.settings.ema)

    def validate(self) -> dict[str, float]:
        """ "dice" and "iou" of the student on validation pictures with masks."""
        val = self.val.select(np.flatnonzero(self.val.masked))
        if not len(val):
            return {}
        scores = score_model(self.config, self.student, val, self.device, distances=False)
        return {"dice": scores["dice"], "iou": scores["iou"]}

    def _guided_weight(self, n_labelled: int, n_unlabelled: int) -> float:
        return n_unlabelled / n_labelled if self.settings.guided_as_labelled and n_labelled else 1.0

    def _geometry(self, count: int, draw: torch.Generator) -> Geometry:
        return Geometry.draw(count, draw, flip=self.settings.flip, turns=self.settings.turns, device=self.device)

    def _pseudo_targets(
        self, picture: Tensor, positions: np.ndarray, geometry: Geometry, draw: torch.Generator
    ) -> dict[str, Tensor | None]:
        """What supervises the student on unlabelled pictures: the teacher on a weak view, and the text-guided masks."""
        teacher_logits = text_logits = None
        if self.teacher is not None:
            with self.autocast():
                teacher_logits = self.teacher(self.normalise(weak_view(picture, draw))).float()
        if self.text_logits is not None:
            stored = torch.from_numpy(np.ascontiguousarray(self.text_logits[positions])).to(self.device).float()
            text_logits = geometry.apply_logits(stored, OUTSIDE)
        has_text = torch.from_numpy(self.guided[positions]).to(self.device)
        return {"teacher_logits": teacher_logits, "text_logits": text_logits, "has_text": has_text}
