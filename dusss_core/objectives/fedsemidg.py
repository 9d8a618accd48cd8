"""The pair of teachers of FedSemiDG (Deng et al., 2025, arXiv 2501.07378), a method made for federations.

One teacher is the round's global model, and stays it for the round; the other averages the site's own students. Both
look at a weak view of an unlabelled picture, the student at a strong one:

    p = (p_global + p_own) / 2,   y = its likeliest class,   h = (H(p_global) + H(p_own)) / 2
    L = L_sup + w C(z(strong view), y) over pixels with h <= threshold

H is the entropy of a pixel. The threshold is a running mean of the q-quantile of the student's H on the batch's
labelled pictures, q from QUANTILES[0] to QUANTILES[1] over the phase. C is the cost of labelled pictures, CE + Dice, of
those pixels. Nothing travels but the student; the threshold stays at the site.

Departures: the running mean starts at the first quantile (published: at 0). A site without labels takes the quantile of
h on its own pictures (published: every site has labels). Not built: the alignment of perturbed features, and weights of
the sites at the coordinator that follow from how far the global model's answers differ from the site's own on its
training pictures: a figure that no site sends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dusss_core.augment import strong_view, weak_view
from dusss_core.losses import probabilities, sigmoid_rampup, supervised_loss
from dusss_core.losses.precision import full_precision
from dusss_core.models.ema import Teacher
from dusss_core.models.weights import load_tensors
from dusss_core.objectives.objective import Batch, Host, Values
from dusss_core.objectives.teacher import WithTeacher

QUANTILES = 0.15, 0.3
"""Share of the pixels whose entropy lies below the threshold, at the start and at the end of the phase."""
DECAY = 0.9
"""Of the running threshold, at each step."""
UNKNOWN = -1.0
"""The threshold before any step; entropies are at least 0."""


class FedSemiDG(WithTeacher):
    """The threshold of a picture comes from others: no noise can make it private."""

    coupled = True

    def __init__(self, host: Host):
        super().__init__(host)
        self.fixed = Teacher(host.student)
        self.threshold = torch.full((), UNKNOWN, device=next(host.student.parameters()).device)

    def start(self) -> None:
        super().start()
        self.threshold.fill_(UNKNOWN)

    def before_round(self) -> None:
        load_tensors(self.fixed.model, self.host.student.state_dict())

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        host, settings, (labelled, unlabelled) = self.host, self.settings, batch
        views, mask = [], None
        if len(labelled):
            view, mask = self.weak_views((labelled, unlabelled[:0]), draw)
            views.append(view)
        if len(unlabelled):
            picture = host.geometry(len(unlabelled), draw).apply(host.pictures(unlabelled))
            weak = host.normalise(weak_view(picture, draw))
            with host.autocast():
                label, doubt = agreed(self.fixed(weak), self.teacher(weak))
            views.append(strong_view(picture, draw, settings.strong))
        with host.autocast():
            logits = host.student(host.normalise(torch.cat(views))).float()
        total, figures = logits.new_zeros(()), {}
        if mask is not None:
            supervised = self.supervised(logits[: len(labelled)], mask)
            total, figures["supervised"] = total + supervised, supervised.detach()
        if len(unlabelled):
            known = entropy(logits[: len(labelled)].detach()) if len(labelled) else doubt
            share = QUANTILES[0] + (QUANTILES[1] - QUANTILES[0]) * share_done
            sure = doubt <= self._follow(quantile(known, share))
            semi = supervised_loss(logits[len(labelled) :], label, dice=settings.dice, sure=sure)
            total = total + settings.weight_semi * semi
            figures |= {"semi": semi.detach(), "confident": sure.float().mean(), "threshold": self.threshold.clone()}
        return total, figures

    def unlabelled_weight(self, share_done: float) -> float:
        """Beside masks it is `weight_semi` throughout. Without any, the two teachers come in over `segment.rampup`."""
        return self.settings.weight_semi * sigmoid_rampup(share_done, self.settings.rampup)

    def _follow(self, value: Tensor) -> Tensor:
        """The running threshold, once it has seen `value` too."""
        running = self.threshold.lerp(value, 1 - DECAY)
        return self.threshold.copy_(torch.where(self.threshold == UNKNOWN, value, running))

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "threshold": self.threshold}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        super().load_state(tensors)
        self.threshold.copy_(tensors["threshold"])

    def kept(self) -> Iterator[Tensor]:
        yield from super().kept()
        yield from self.fixed.model.state_dict().values()


def agreed(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """What two teachers make of the pixels: the likeliest class of their mean probability, and the mean of their
    entropies in nats; both B x H x W, from B x C x H x W logits."""
    p = (probabilities(first) + probabilities(second)) / 2
    label = (p[:, 0] > 0.5).long() if p.shape[1] == 1 else p.argmax(dim=1)
    return label, (entropy(first) + entropy(second)) / 2


@full_precision
def entropy(logits: Tensor) -> Tensor:
    """Of each pixel's classes, in nats: B x H x W, from B x C x H x W logits."""
    p = probabilities(logits)
    if p.shape[1] == 1:
        p = torch.cat([p, (-logits).sigmoid()], dim=1)
    return torch.special.entr(p).sum(dim=1)


def quantile(values: Tensor, share: float) -> Tensor:
    """The smallest of `values` that at least `share` of them do not exceed."""
    return values.flatten().kthvalue(max(1, math.ceil(share * values.numel())))[0]
