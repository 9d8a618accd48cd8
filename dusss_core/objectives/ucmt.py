"""Uncertainty-guided collaborative mean teacher: UCMT (Shen et al., IJCAI 2023).

Two students of one shape and different starts, and a teacher t that averages the first. Every batch is taken for two
steps of the same loss; y are masks, hard() labels without gradient:

    L = sum_k L_sup(s_k, y) + w(t) [ CPS + CMT ]
    CPS = 1/2 [ L_sup(s_1, hard(s_2)) + L_sup(s_2, hard(s_1)) ],   CMT = 1/2 sum_k L_sup(s_k, hard(t))

In the first step both students see the weak view of labelled pictures, and of the others each a strong view of its own;
the teacher sees weak views. In the second both see one picture (UMIX): the strong view in which the TOP patches of
GRID x GRID that were least certain are replaced by those of the same picture that were most certain for the other
student, in the picture, its mask or the teacher's label alike. Uncertainty is the entropy of (p_k + p_t) / 2, averaged
over a patch, in the first step.

w(t) is WEIGHT times a ramp over RAMP of the phase. Both students are parts of the network that is trained and travel;
the first is deployed. Pictures with masks are among the others too, without their masks, as published.

Departures: L_sup in all terms (published: Dice alone); both strong views are made of the picture, not the second of
the first; the teacher averages the first student alone (published: 99 % of it and 1 % of the second); the second step
is one of the schedule's, so that every method has as many; a teacher never leaves a site, so a student is deployed
(published: the teacher, of the epoch with the lowest training loss).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dusss_core.augment import Geometry, strong_view, weak_view
from dusss_core.config import SegmentConfig, TrainingConfig
from dusss_core.losses import probabilities, sigmoid_rampup
from dusss_core.losses.precision import full_precision
from dusss_core.models.decoders import Addition
from dusss_core.objectives.bcp import hard_labels
from dusss_core.objectives.objective import Batch, Host, Values
from dusss_core.objectives.teacher import WithTeacher
from dusss_core.sampling import labelled_per_step, two_stream_batches

WEIGHT = 0.1
"""Of CPS + CMT once they are ramped up, beside `segment.weight_semi`."""
RAMP = 0.2
"""Share of the phase over which they are ramped up (5 of 25 epochs there)."""
GRID = 16
"""Patches along each side of a picture."""
TOP = 2
"""Patches that are replaced for each student."""


class Again(NamedTuple):
    """The batch of the step before, once more."""

    labelled: np.ndarray
    unlabelled: np.ndarray


class Mixed(NamedTuple):
    """What the second step is taken on."""

    view: Tensor
    """B x C x H x W in [0, 1]; labelled pictures first."""
    target: Tensor
    """B x H x W class indices: masks, then the teacher's labels."""
    n_labelled: int


class UCMT(WithTeacher):
    """Two networks of which the first is deployed, and a teacher."""

    coupled = True
    coupling = "takes every batch for two steps, and a draw of records is paid for once"

    def __init__(self, host: Host):
        super().__init__(host)
        # of one student, by its parameters; as published it normalises with its own batch
        del self.teacher.model.second
        self.teacher.follows_buffers = False
        self.teacher.model.train()
        self._mixed: Mixed | None = None

    @classmethod
    def builds(cls, config: TrainingConfig) -> tuple[Addition, ...]:
        return ("copy",)

    @classmethod
    def labelled_per_step(cls, settings: SegmentConfig, labelled: int, other: int) -> int:
        return labelled_per_step(labelled, labelled + other, settings.batch, settings.labelled_share)

    def batches(self, steps: int, draw: torch.Generator) -> Iterator[Batch]:
        """Each batch twice in a row; of an odd number of steps the last is a first one."""
        host, settings = self.host, self.settings
        everybody = np.sort(np.concatenate([host.labelled, host.unlabelled]))
        pairs = -(-steps // 2)
        drawn = two_stream_batches(host.labelled, everybody, settings.batch, settings.labelled_share, pairs, draw)
        for number, batch in enumerate(drawn):
            yield batch
            if 2 * number + 1 < steps:
                yield Again(*batch)
        self._mixed = None

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        if isinstance(batch, Again) and self._mixed is not None:
            return self._second_step(self._mixed, share_done)
        return self._first_step(batch, draw, share_done)

    def unlabelled_weight(self, share_done: float) -> float:
        return self.settings.weight_semi * WEIGHT * sigmoid_rampup(share_done, RAMP)

    def _first_step(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        host, settings, (labelled, unlabelled) = self.host, self.settings, batch
        weak, strong, other_strong, targets = [], [], [], []
        if len(labelled):
            picture, geometry = self._moved(labelled, draw)
            weak.append(weak_view(picture, draw))
            strong.append(strong_view(picture, draw, settings.strong))
            targets.append(geometry.apply_mask(host.masks(labelled)).long())
        if len(unlabelled):
            picture, _ = self._moved(unlabelled, draw)
            weak.append(weak_view(picture, draw))
            strong.append(strong_view(picture, draw, settings.strong))
            other_strong.append(strong_view(picture, draw, settings.strong))
        n, shown = len(labelled), weak[: bool(len(labelled))]
        views = [torch.cat([*shown, *strong[len(shown) :]]), torch.cat([*shown, *other_strong])]
        with host.autocast():
            answers = [student(host.normalise(x)).float() for student, x in zip(self._students, views, strict=True)]
            heard = self.teacher(host.normalise(torch.cat(weak))).float()
        targets.append(hard_labels(heard[n:]))
        target = torch.cat(targets)
        source = exchanged(*(patch_uncertainty(answer, heard) for answer in answers), TOP)
        view = rearranged(torch.cat(strong), source)
        self._mixed = Mixed(view, rearranged(target[:, None], source)[:, 0], n)
        return self._costs(answers, target, n, share_done)

    def _second_step(self, mixed: Mixed, share_done: float) -> tuple[Tensor, Values]:
        host, self._mixed = self.host, None
        x = host.normalise(mixed.view)
        with host.autocast():
            answers = [student(x).float() for student in self._students]
        return self._costs(answers, mixed.target, mixed.n_labelled, share_done)

    def _costs(self, answers: list[Tensor], target: Tensor, n: int, share_done: float) -> tuple[Tensor, Values]:
        """
        Args:
            answers: of either student, B x C x H x W logits.
            target: B x H x W: masks of the first n pictures, the teacher's labels of the others.
        """
        total, figures = answers[0].new_zeros(()), {}
        if n:
            supervised = sum(self.supervised(answer[:n], target[:n]) for answer in answers)
            total, figures["supervised"] = total + supervised, supervised.detach()
        weight = self.unlabelled_weight(share_done)
        if n < len(target) and weight:
            own = [answer[n:] for answer in answers]
            peers = sum(
                self.supervised(answer, hard_labels(other)) for answer, other in zip(own, reversed(own), strict=True)
            )
            taught = sum(self.supervised(answer, target[n:]) for answer in own)
            total = total + weight * (peers + taught) / 2
            figures |= {"cps": peers.detach() / 2, "cmt": taught.detach() / 2}
        return total, figures

    @property
    def _students(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        return self.host.student, self.host.student.second

    def _moved(self, positions: np.ndarray, draw: torch.Generator) -> tuple[Tensor, Geometry]:
        geometry = self.host.geometry(len(positions), draw)
        return geometry.apply(self.host.pictures(positions)), geometry


@torch.no_grad()
@full_precision
def patch_uncertainty(logits: Tensor, other_logits: Tensor, grid: int = GRID) -> Tensor:
    """Entropy of the mean of two answers in nats, averaged over each patch: B x grid², from B x C x H x W logits each.
    Patches lie row by row."""
    p = (probabilities(logits) + probabilities(other_logits)) / 2
    if p.shape[1] == 1:
        p = torch.cat([1 - p, p], dim=1)
    entropy = -torch.xlogy(p, p).sum(dim=1, keepdim=True)
    height, width = entropy.shape[2:]
    return F.avg_pool2d(entropy, (height // grid, width // grid)).flatten(1)


def exchanged(uncertainty: Tensor, other: Tensor, top: int) -> Tensor:
    """Which patch comes to each place: its own, but at the `top` least certain ones of either student the most certain
    ones of the other. Where both want a place, the second student has it.

    Args:
        uncertainty, other: B x patches, of the first student and of the second.

    Returns:
        B x patches int64.
    """
    patches = uncertainty.shape[1]
    order, other_order = (values.argsort(dim=1, descending=True, stable=True) for values in (uncertainty, other))
    source = torch.arange(patches, device=uncertainty.device).repeat(len(uncertainty), 1)
    source = source.scatter(1, order[:, :top], other_order[:, patches - top :])
    return source.scatter(1, other_order[:, :top], order[:, patches - top :])


def rearranged(values: Tensor, source: Tensor) -> Tensor:
    """B x C x H x W with the patch `source` (B x grid², as `exchanged` gives it) says at each place."""
    batch, channels, height, width = values.shape
    grid = round(source.shape[1] ** 0.5)
    tall, wide = height // grid, width // grid
    patches = values.reshape(batch, channels, grid, tall, grid, wide).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(batch, grid * grid, channels * tall * wide)
    patches = patches.gather(1, source[..., None].expand_as(patches))
    return patches.reshape(batch, grid, grid, channels, tall, wide).permute(0, 3, 1, 4, 2, 5).reshape(values.shape)
