"""Bidirectional copy-paste (Bai et al., CVPR 2023).

A box of a labelled picture is replaced by the same box of an unlabelled one (inward), and the other way (outward);
masks and the teacher's hard pseudo-labels are mixed alike. M is 0 in the box, 2/3 as high and as wide as the picture:

    x_in = u_a M + l_a (1 - M),   x_out = l_b M + u_b (1 - M)
    L = sum over both of 1/2 [ C(labelled region) + ALPHA C(unlabelled region) ],   C = CE + Dice of a region's pixels

Over the first START of the phase labelled pictures are mixed with each other, and the teacher is the student.
Departures: pseudo-labels keep all their components (lungs are two, nuclei many); the harness's optimiser. A pasted box
breaks every sentence about places: no text, by design.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dusss_core.config import SegmentConfig
from dusss_core.losses import probabilities, supervised_loss
from dusss_core.objectives.objective import Batch, Host, Values
from dusss_core.objectives.teacher import WithTeacher
from dusss_core.sampling import labelled_per_step, two_stream_batches
from dusss_core.transfer import sent

ALPHA = 0.5
"""Weight of the unlabelled region, beside `segment.weight_semi`."""
START = 0.25
"""Share of the phase before unlabelled pictures come in (10,000 of 40,000 steps there)."""
BOX = 2 / 3
"""Height and width of the box, as shares of the picture's."""


class Part(NamedTuple):
    """What a mixture takes one of its two regions from."""

    x: Tensor
    """B x C x H x W, normalised."""
    target: Tensor
    """B x H x W class indices: masks, or the teacher's hard labels."""
    labelled: bool = True


def _batch(settings: SegmentConfig) -> int:
    """Twice as many of either kind as there are mixtures of a kind: (batch / 4) each way."""
    return 4 * max(1, settings.batch // 4)


class BCP(WithTeacher):
    """As many labelled as unlabelled pictures in a batch, in halves; `segment.labelled_share` has no say."""

    coupled = True

    def __init__(self, host: Host):
        super().__init__(host)
        # as published: it normalises with its own batch
        self.teacher.model.train()

    @classmethod
    def alone(cls, config) -> None:
        """There is nothing to paste into."""
        return

    @classmethod
    def labelled_per_step(cls, settings: SegmentConfig, labelled: int, other: int) -> int:
        return labelled_per_step(labelled, other, _batch(settings), 0.5, exact=True)

    def batches(self, steps: int, draw: torch.Generator) -> Iterator[Batch]:
        labelled, unlabelled = self.host.labelled, self.host.unlabelled
        return two_stream_batches(labelled, unlabelled, _batch(self.settings), 0.5, steps, draw, exact=True)

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        host, (labelled, unlabelled) = self.host, batch
        # without unlabelled pictures it stays so: labelled ones are mixed among themselves
        early = share_done < START or not len(unlabelled)
        view, mask = self.weak_views((labelled, unlabelled[:0]) if early else batch, draw)
        x = host.normalise(view)
        keep = box_mask(x.shape[-2:], draw)
        places = [region.flatten().nonzero().squeeze(1) for region in (keep, ~keep)]
        keep, *places = sent(x.device, keep, *places)
        (l_a, l_b), (y_a, y_b) = (halves(values) for values in (x[: len(labelled)], mask))
        mixtures: list[tuple[Part, Part]]
        if early:
            mixtures = [(Part(l_a, y_a), Part(l_b, y_b))]
        else:
            u_a, u_b = halves(x[len(labelled) :])
            with host.autocast():
                v_a, v_b = (hard_labels(self.teacher(u)) for u in (u_a, u_b))
            mixtures = [
                (Part(u_a, v_a, labelled=False), Part(l_a, y_a)),
                (Part(l_b, y_b), Part(u_b, v_b, labelled=False)),
            ]
        pictures = torch.cat([torch.where(keep, outside.x, inside.x) for outside, inside in mixtures])
        with host.autocast():
            logits = host.student(pictures).float()
        return self._costs(logits.split(len(l_a)), mixtures, keep, places)

    def unlabelled_weight(self, share_done: float) -> float:
        return self.settings.weight_semi * ALPHA if share_done >= START else 0.0

    def after_step(self, step: int, share_done: float) -> None:
        """Early on the teacher is the student."""
        if share_done < START:
            self.start()
        else:
            super().after_step(step, share_done)

    def _costs(
        self, answers: Sequence[Tensor], mixtures: Sequence[tuple[Part, Part]], keep: Tensor, places: Sequence[Tensor]
    ) -> tuple[Tensor, Values]:
        """
        Args:
            places: of the pixels outside the box and inside, in rows laid end to end.
        """
        total = answers[0].new_zeros(())
        figures = {"labelled": total, "unlabelled": total}
        for logits, parts in zip(answers, mixtures, strict=True):
            for part, region, where in zip(parts, (keep, ~keep), places, strict=True):
                if not len(where):
                    continue
                cost = supervised_loss(logits, part.target, dice=self.settings.dice, region=region, places=where) / 2
                total = total + (1.0 if part.labelled else self.settings.weight_semi * ALPHA) * cost
                kind = "labelled" if part.labelled else "unlabelled"
                figures[kind] = figures[kind] + cost.detach()
        return total, figures


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second half of a batch, of equal length."""
    n = len(values) // 2
    return values[:n], values[n : 2 * n]


def box_mask(size: tuple[int, int], draw: torch.Generator) -> Tensor:
    """M, H x W bool: False in one box at a random place; its sides are the whole part of 2/3 of the picture's."""
    height, width = size
    tall, wide = int(height * BOX), int(width * BOX)
    top = int(torch.randint(0, height - tall + 1, (), generator=draw))
    left = int(torch.randint(0, width - wide + 1, (), generator=draw))
    keep = torch.ones(height, width, dtype=torch.bool)
    keep[top : top + tall, left : left + wide] = False
    return keep


def hard_labels(logits: Tensor) -> Tensor:
    """B x H x W class indices without gradient, from B x C x H x W logits."""
    p = probabilities(logits).detach()
    return (p[:, 0] > 0.5).long() if p.shape[1] == 1 else p.argmax(dim=1)
