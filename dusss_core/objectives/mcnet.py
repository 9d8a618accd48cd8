"""Mutual consistency: MC-Net (Wu et al., MICCAI 2021) and MC-Net+ (Wu et al., Medical Image Analysis 81, 2022).

One encoder, decoders that differ in how they raise the resolution alone. Each learns from the sharpened answers of the
others, on labelled and unlabelled pictures, and gradients flow through both sides:

    L = sum_k L_sup(z_k) + w(t) sum_{i != j} mean (p_i - sharpen(p_j))^2

w(t) is WEIGHT times a ramp over the whole phase. The first decoder is deployed. Departure: L_sup is the harness's, for
every method alike (published: Dice alone, without its factor 2).
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from dusss_core.config import TrainingConfig
from dusss_core.losses import probabilities, sigmoid_rampup
from dusss_core.losses.precision import full_precision
from dusss_core.models.decoders import DecoderKind
from dusss_core.objectives.objective import Batch, Objective, Values

WEIGHT = 0.1
"""Of the mutual term at the end of the phase, beside `segment.weight_semi`."""
TEMPERATURE = 0.1
"""T of the sharpening."""


class MCNet(Objective):
    """MC-Net+: three decoders."""

    networks = frozenset({"unet", "small_unet"})
    kinds: tuple[DecoderKind, ...] = ("transposed", "bilinear", "nearest")
    """Of all decoders; the network's own is one of them."""

    @classmethod
    def builds(cls, config: TrainingConfig) -> tuple[DecoderKind, ...]:
        own = {"unet": "transposed", "small_unet": "bilinear"}[config.student.kind]
        return tuple(kind for kind in cls.kinds if kind != own)

    @classmethod
    def alone(cls, config: TrainingConfig) -> None:
        """The mutual term is smallest for any constant answer that is sure: without a mask nothing holds it."""
        return

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        host, (labelled, _) = self.host, batch
        view, mask = self.weak_views(batch, draw)
        with host.autocast():
            answers = [logits.float() for logits in host.student.all_logits(host.normalise(view))]
        total, figures = answers[0].new_zeros(()), {}
        if mask is not None:
            supervised = sum(self.supervised(logits[: len(labelled)], mask) for logits in answers)
            total, figures["supervised"] = total + supervised, supervised.detach()
        if weight := self.unlabelled_weight(share_done):
            mutual = mutual_loss(answers)
            total, figures["mutual"] = total + weight * mutual, mutual.detach()
        return total, figures

    def unlabelled_weight(self, share_done: float) -> float:
        return self.settings.weight_semi * WEIGHT * sigmoid_rampup(share_done, 1.0)


class MCNetV1(MCNet):
    """MC-Net: two decoders."""

    kinds = ("transposed", "bilinear")


def mutual_loss(answers: list[Tensor]) -> Tensor:
    """sum over ordered pairs of mean (p_i - sharpen(p_j))^2; each of `answers` is B x C x H x W logits."""
    plain = [probabilities(logits) for logits in answers]
    sharp = [sharpened(logits) for logits in answers]
    pairs = permutations(range(len(answers)), 2)
    return sum(((plain[i] - sharp[j]).square().mean() for i, j in pairs), answers[0].new_zeros(()))


@full_precision
def sharpened(logits: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """p^(1/T) / (p^(1/T) + (1 - p)^(1/T)) = sigmoid(logit(p) / T), B x C x H x W; of several channels each against the
    rest. From the logits: the tenth power of a probability would underflow."""
    if logits.shape[1] > 1:
        others = [[k for k in range(logits.shape[1]) if k != channel] for channel in range(logits.shape[1])]
        logits = logits - torch.stack([logits[:, rest].logsumexp(dim=1) for rest in others], dim=1)
    return (logits / temperature).sigmoid()
