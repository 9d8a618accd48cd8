"""FixMatch (Sohn et al., NeurIPS 2020), pixel by pixel: a weak view labels a strong one.

    L = L_sup + w mean over unlabelled pictures of C(z(strong view), y),
    y = likeliest class in the weak view, where its probability is at least CONFIDENCE

C is the cost of labelled pictures, CE + Dice, of the sure pixels alone; its CE is divided by all of them, so that a
picture with three sure ones counts for little. There is no teacher and no ramp: the student itself labels, in the pass
in which it learns and without gradient, and until it is sure of something nothing is heard. (In evaluation mode it was
sure of nearly half of the pixels from the start, by running statistics that fit nothing yet.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from dusss_core.augment import strong_view
from dusss_core.losses import probabilities, sigmoid_rampup, supervised_loss
from dusss_core.objectives.objective import Batch, Objective, Values

CONFIDENCE = 0.95
"""Least probability of a pixel's likeliest class for the pixel to count."""


class FixMatch(Objective):
    """Both views of a picture are moved alike, so that a label stays where its pixel is."""

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        host, settings, (labelled, unlabelled) = self.host, self.settings, batch
        n = len(labelled)
        views, mask, picture = self.moved(batch, draw)
        if picture is not None:
            views.append(strong_view(picture, draw, settings.strong))
        with host.autocast():
            logits = host.student(host.normalise(torch.cat(views))).float()
        plain, weak, strong = logits.split([n, len(unlabelled), len(unlabelled)])
        total, figures = logits.new_zeros(()), {}
        if mask is not None:
            supervised = self.supervised(plain, mask)
            total, figures["supervised"] = total + supervised, supervised.detach()
        if len(unlabelled):
            label, sure = sure_labels(weak)
            semi = supervised_loss(strong, label, dice=settings.dice, sure=sure)
            total = total + settings.weight_semi * semi
            figures["semi"], figures["confident"] = semi.detach(), sure.float().mean()
        return total, figures

    def unlabelled_weight(self, share_done: float) -> float:
        """Beside masks it is `weight_semi` throughout. Without any, whatever the student is sure of satisfies it, right
        or wrong: there it comes in over `segment.rampup`."""
        return self.settings.weight_semi * sigmoid_rampup(share_done, self.settings.rampup)


def sure_labels(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest class of each pixel, and whether its probability is at least CONFIDENCE: both B x H x W, from
    B x C x H x W logits."""
    p = probabilities(logits).detach()
    if p.shape[1] == 1:
        p = torch.cat([1 - p, p], dim=1)
    most, label = p.max(dim=1)
    return label, most >= CONFIDENCE
