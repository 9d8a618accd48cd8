"""Smoothness and separation: SS-Net (Wu et al., MICCAI 2022).

    L = L_sup + w(t) [ L_smooth + CONTRAST (L_near(labelled) + L_near(unlabelled)) ]

L_smooth: the answer to a picture stays, moved in the direction that changes it most (virtual adversarial training):

    L_smooth = D(sg p(x), p(x + RADIUS g / |g|)),   g = dD(sg p(x), p(x + PROBE d)) / dd,   D = 1 - soft Dice

with a random unit vector d for each picture. L_near draws the pixels of a class, by mask or by the student's own
answer, to pixels of the class in labelled pictures of the same batch that it calls right; f are features of the
prediction head, s of the projection head, and a and b the weights that two selectors give them, each of sum 1:

    L_near = mean over classes of sum_ij a_i b_j (1 - cos(f_i, s_j))

w(t) is WEIGHT times a ramp over the whole phase. The heads (`pixel_heads`) are the student's, and travel; of pixels
nothing is kept. A site without labels has nothing to draw to: it learns to be smooth, and hands the heads on.

Departures, where the published code contradicts its paper or the harness asks for it: of the pixels that are right the
best by the selector are compared with (published: the worst); the mean is over the classes that have any (published:
over all, with a background that never has); SAMPLED pixels of a class and picture are looked at, not all; D is of each
picture and foreground class, with L_sup's smoothing, and starts from the answer that L_sup sees.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dusss_core.config import TrainingConfig
from dusss_core.inference import evaluating
from dusss_core.losses import probabilities, sigmoid_rampup
from dusss_core.losses.precision import full_precision
from dusss_core.models.batch_norm import untracked
from dusss_core.models.decoders import Addition
from dusss_core.objectives.bcp import hard_labels
from dusss_core.objectives.objective import Batch, Objective, Values
from dusss_core.seeds import device_generator

WEIGHT = 0.1
"""Of both terms at the end of the phase, beside `segment.weight_semi`."""
CONTRAST = 0.1
"""Of L_near, beside L_smooth."""
PROBE, RADIUS = 10.0, 6.0
"""L2 norms of what is added to a normalised picture: to find the direction, and along it."""
STORED = 32
"""Pixels of a class that its others are drawn to, at most."""
SAMPLED = 1024
"""Pixels of a class and picture that are looked at, at most."""
SMOOTH = 1.0
"""Added above and below in the Dice, as in L_sup: where neither answer has the class, the distance is near 0."""


class Pixels(NamedTuple):
    """As many places of each picture for one class; where the class has fewer, others of the picture fill up."""

    places: Tensor
    """B x n int64, in H x W laid end to end."""
    of_class: Tensor
    """B x n bool: False where it only fills up."""


class SSNet(Objective):
    """One network, with heads on its last map; the network alone is deployed."""

    coupled = True

    @classmethod
    def builds(cls, config: TrainingConfig) -> tuple[Addition, ...]:
        return ("pixel_heads",)

    @classmethod
    def alone(cls, config: TrainingConfig) -> tuple[str, ...]:
        """The heads have no gradient there."""
        return ("pixel_heads.",)

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        host, (labelled, _) = self.host, batch
        view, mask = self.weak_views(batch, draw)
        x = host.normalise(view)
        with host.autocast():
            logits, features = host.student.with_features(x)
        logits = logits.float()
        total, figures = logits.new_zeros(()), {}
        if mask is not None:
            supervised = self.supervised(logits[: len(labelled)], mask)
            total, figures["supervised"] = total + supervised, supervised.detach()
        if weight := self.unlabelled_weight(share_done):
            noise = torch.rand(x.shape, generator=device_generator(draw, x.device), device=x.device) - 0.5
            smooth = adversarial_distance(host.student, x, logits, noise.to(x))
            total, figures["smooth"] = total + weight * smooth, smooth.detach()
            if mask is not None:
                near = self._nearness(features, hard_labels(logits), mask, draw)
                total, figures["near"] = total + weight * CONTRAST * near, near.detach()
        return total, figures

    def unlabelled_weight(self, share_done: float) -> float:
        return self.settings.weight_semi * WEIGHT * sigmoid_rampup(share_done, 1.0)

    def _nearness(self, features: Tensor, answer: Tensor, mask: Tensor, draw: torch.Generator) -> Tensor:
        """L_near of the labelled and of the other pictures, summed.

        Args:
            features: B x C x H x W, what the student's head reads; labelled pictures first.
            answer: B x H x W class indices that the student gives.
            mask: n x H x W, of the n labelled pictures.
        """
        heads, n = self.host.student.pixel_heads, len(mask)
        truth = (mask > 0).long() if self.config.image.classes == 1 else mask.long()
        called = torch.cat([truth, answer[n:]])
        distances = []
        for number in range(len(heads.selectors)):
            pixels = sampled(called == number + 1, draw)
            looked_at = taken(features, pixels.places).float()
            right = taken(answer[:n, None], pixels.places[:n])[:, 0, :, 0] == number + 1
            stored, usable = best(heads, number, looked_at[:n], pixels.of_class[:n] & right)
            _, predicted = heads(looked_at)
            weight = heads.selectors[number](predicted.detach())[:, 0, :, 0].sigmoid() * pixels.of_class
            stored_weight = heads.stored_selectors[number](stored)[:, 0, :, 0].sigmoid() * usable
            for part in (slice(None, n), slice(n, None)):
                distances.append(class_distance(predicted[part], stored, weight[part], stored_weight))
        distance, counts = (torch.stack(values).view(-1, 2) for values in zip(*distances, strict=True))
        # over the classes that have pixels, of the labelled and of the other pictures each
        return (distance.sum(dim=0) / counts.sum(dim=0).clamp(min=1)).sum()


@full_precision
def dice_distance(logits: Tensor, other_logits: Tensor) -> Tensor:
    """1 - soft Dice of two answers, B x C x H x W logits each, averaged over the foreground classes: B.

    With squares in the denominator, so that an unsure answer is at distance 0 from itself too.
    """
    p, q = probabilities(logits), probabilities(other_logits)
    if p.shape[1] > 1:
        p, q = p[:, 1:], q[:, 1:]
    overlap, size = (p * q).sum(dim=(2, 3)), (p.square() + q.square()).sum(dim=(2, 3))
    return (1 - (2 * overlap + SMOOTH) / (size + SMOOTH)).mean(dim=1)


@full_precision
def adversarial_distance(network: nn.Module, x: Tensor, logits: Tensor, noise: Tensor) -> Tensor:
    """L_smooth: how far the answer goes along the direction that changes it most, found in one step.

    In float32 whatever the study's autocast. Running statistics of the network stay as they are.

    Args:
        x: B x C x H x W, normalised. logits: what the network answers, which gets no gradient.
        noise: as `x`; the direction that is started from, of any length.
    """
    logits = logits.detach()
    with untracked(network):
        start = unit(noise).requires_grad_()
        [uphill] = torch.autograd.grad(dice_distance(logits, network(x + PROBE * start)).sum(), start)
        return dice_distance(logits, network(x + RADIUS * unit(uphill))).mean()


def unit(values: Tensor) -> Tensor:
    """Each of B x C x H x W divided by its L2 norm; one that is zero everywhere stays so."""
    return F.normalize(values.flatten(1), dim=1, eps=1e-20).view_as(values)


def sampled(of_class: Tensor, draw: torch.Generator) -> Pixels:
    """At most SAMPLED pixels of each picture, at random among those where `of_class` (B x H x W bool) is True."""
    device, flat = of_class.device, of_class.flatten(1)
    order = torch.rand(flat.shape, generator=device_generator(draw, device), device=device)
    # as many of each picture, whatever it shows: to count them a device would be waited for
    order, places = torch.where(flat, order, order - 1).topk(min(SAMPLED, flat.shape[1]), dim=1)
    return Pixels(places, order >= 0)


def taken(values: Tensor, places: Tensor) -> Tensor:
    """B x C x n x 1: of B x C x H x W at `places`, B x n."""
    return values.flatten(2).gather(2, places[:, None].expand(-1, values.shape[1], -1))[..., None]


@torch.no_grad()
def best(heads: nn.Module, number: int, features: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Projections of the candidates that the selector ranks highest, without gradient.

    Args:
        heads: `PixelHeads`; used in evaluation mode, which they leave as they were.
        number: of the class, among those with selectors.
        features: B x C x n x 1. candidates: B x n bool.

    Returns:
        1 x 32 x k x 1 with k at most STORED, and 1 x k bool: False where there are fewer candidates.
    """
    with evaluating(heads):
        projected = heads.projection(features)
        rank = torch.where(candidates, heads.selectors[number](projected)[:, 0, :, 0].sigmoid(), -1.0).flatten()
    rank, chosen = rank.topk(min(STORED, len(rank)))
    return projected[..., 0].movedim(1, 2).flatten(0, 1)[chosen].T[None, ..., None], rank[None] >= 0


@full_precision
def class_distance(features: Tensor, stored: Tensor, weight: Tensor, stored_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over all pairs of 1 - cos, weighted by both; and whether there is any pair (0 or 1), without which it is 0.

    The weighted mean of cosines is the product of two weighted means of unit vectors, so no pair is made.

    Args:
        features: B x D x n x 1. stored: 1 x D x k x 1. weight, stored_weight: B x n and 1 x k, at least 0.
    """
    means = []
    for vectors, own in ((features, weight), (stored, stored_weight)):
        total = own.sum()
        share = own / torch.where(total > 0, total, 1)
        means.append((F.normalize(vectors[..., 0], dim=1) * share[:, None]).sum(dim=(0, 2)))
    some = (weight.sum() > 0) & (stored_weight.sum() > 0)
    return torch.where(some, 1 - means[0] @ means[1], 0.0), some.to(features.dtype)
