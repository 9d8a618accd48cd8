"""UniMatch (Yang et al., CVPR 2023): one weak view labels two strong views and one with dropped features.

    L = (L_sup + w (1/4 C(z_s1, y_1) + 1/4 C(z_s2, y_2) + 1/2 C(z_fp, y))) / 2

y is the likeliest class in the weak view, C the cost of its sure pixels, both as in `fixmatch`. The strong views s1 and
s2 are drawn by themselves; a box of each is replaced by that of another picture in its own strong view, and the labels
alike (y_1, y_2: CutMix). fp is the weak view again, half of the channels of all the encoder's maps left out. Weak view
and dropped features are decoded together with the labelled pictures, as published. Departures: the other picture is one
of the same batch (published: of a second one); C has CE + Dice (published: CE, for medical pictures Dice); colours
change as in this project's strong view.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dusss_core.augment import strong_view
from dusss_core.losses import supervised_loss
from dusss_core.objectives.cct import feature_dropout
from dusss_core.objectives.fixmatch import FixMatch, sure_labels
from dusss_core.objectives.objective import Batch, Values
from dusss_core.transfer import sent

WEIGHTS = {"strong_1": 0.25, "strong_2": 0.25, "dropped": 0.5}
"""Of the three views of an unlabelled picture."""
DROPOUT = 0.5
"""Share of the channels that feature dropout leaves out."""
MIXED = 0.5
"""Probability that a strong view gets a box of another picture."""
LEAST_AREA, LARGEST_AREA = 0.02, 0.4
"""Of a box, as shares of the picture."""
LEAST_ASPECT = 0.3
"""Height over width of a box is between this and one over it."""


class UniMatch(FixMatch):
    """Labelled pictures, weak views and those with dropped features in one pass, both strong views in another."""

    networks = frozenset({"unet", "small_unet"})
    coupled = True

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        host, settings, (labelled, unlabelled) = self.host, self.settings, batch
        n = len(labelled)
        views, mask, picture = self.moved(batch, draw)
        with host.autocast():
            levels = host.student.encode(host.normalise(torch.cat(views)))
            if len(unlabelled):
                levels = [torch.cat([x, feature_dropout(x[n:], draw, DROPOUT)]) for x in levels]
            plain, weak, dropped = host.student.decode(levels).float().split([n, len(unlabelled), len(unlabelled)])
        total, figures = plain.new_zeros(()), {}
        if mask is not None:
            supervised = self.supervised(plain, mask)
            total, figures["supervised"] = total + supervised, supervised.detach()
        if len(unlabelled):
            label, sure = sure_labels(weak)
            targets = {"dropped": (dropped, label, sure)}
            targets |= self._strong(picture, label, sure, draw)
            costs = {
                name: supervised_loss(logits, label, dice=settings.dice, sure=sure)
                for name, (logits, label, sure) in targets.items()
            }
            total = total + settings.weight_semi * sum(WEIGHTS[name] * cost for name, cost in costs.items())
            figures |= {name: cost.detach() for name, cost in costs.items()}
            figures["confident"] = sure.float().mean()
        return total / 2, figures

    def _strong(
        self, picture: Tensor, label: Tensor, sure: Tensor, draw: torch.Generator
    ) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Logits, labels and sure pixels of both strong views, after CutMix."""
        host, count = self.host, len(picture)
        inside = [boxes(count, picture.shape[-2:], draw) for _ in range(2)]
        inside = sent(picture.device, *inside)
        views = [mixed(strong_view(picture, draw, self.settings.strong), box[:, None]) for box in inside]
        with host.autocast():
            logits = host.student(host.normalise(torch.cat(views))).float().split(count)
        return {
            f"strong_{number}": (answer, mixed(label, box), mixed(sure, box))
            for number, (answer, box) in enumerate(zip(logits, inside, strict=True), start=1)
        }


def mixed(values: Tensor, inside: Tensor) -> Tensor:
    """Each sample with the one before it in the batch where `inside` is True: B first, bool of a shape that fits."""
    return torch.where(inside, values.roll(1, dims=0), values)


def boxes(count: int, size: tuple[int, int], draw: torch.Generator) -> Tensor:
    """B x H x W bool on the CPU: True in one box of each sample, at a random place; nowhere in those that get none."""
    height, width = size
    unit = torch.rand(count, 5, generator=draw)
    area = LEAST_AREA + (LARGEST_AREA - LEAST_AREA) * unit[:, 1]
    aspect = torch.exp(math.log(LEAST_ASPECT) * (2 * unit[:, 2] - 1))
    # a long box of a large area is cut to the picture
    tall = ((area * aspect).sqrt().clamp(max=1) * height).round().clamp(min=1)
    wide = ((area / aspect).sqrt().clamp(max=1) * width).round().clamp(min=1)
    top, left = (unit[:, 3] * (height - tall + 1)).floor(), (unit[:, 4] * (width - wide + 1)).floor()
    down = _between(height, top, top + tall)[:, :, None]
    across = _between(width, left, left + wide)[:, None]
    return down & across & (unit[:, 0] < MIXED)[:, None, None]


def _between(count: int, start: Tensor, end: Tensor) -> Tensor:
    """B x count bool: places from `start` to before `end`."""
    places = torch.arange(count)
    return (places >= start[:, None]) & (places < end[:, None])
