"""Cross-consistency training (Ouali et al., CVPR 2020), in the 2-D form that medical papers mean by it (SSL4MIS).

A main decoder and three auxiliary ones, each of which sees the encoder's maps perturbed in its own way: noise, dropout,
and the most active places left out. All learn from masks; on unlabelled pictures the auxiliary ones learn to agree
with the main one:

    L = mean_k L_sup(z_k) + w(t) mean_aux mean (p_aux - sg p_main)^2

w(t) is WEIGHT times a ramp over RAMP of the phase. The target has no gradient (sg), as in the paper: without that the
decoders collapse onto each other. So the main decoder learns from masks alone, and a site without any hands it on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dusss_core.config import TrainingConfig
from dusss_core.losses import sigmoid_rampup
from dusss_core.models.decoders import DecoderKind
from dusss_core.objectives.mean_teacher_mse import consistency_loss
from dusss_core.objectives.objective import Batch, Objective, Values
from dusss_core.seeds import device_generator
from dusss_core.transfer import sent

WEIGHT = 1.0
"""Of the consistency once it is ramped up, beside `segment.weight_semi`. Published: 30 (paper), 0.1 (SSL4MIS)."""
RAMP = 0.1
"""Share of the phase over which the consistency is ramped up."""
NOISE = 0.3
"""Feature noise: x + x U(-0.3, 0.3)."""
DROPOUT = 0.3
"""Share of the channels that feature dropout leaves out."""
DROP_FROM, DROP_TO = 0.7, 0.9
"""Feature drop leaves out places whose channel mean exceeds U(0.7, 0.9) of its maximum."""


class CCT(Objective):
    """One encoder; its main decoder is deployed."""

    networks = frozenset({"unet", "small_unet"})

    @classmethod
    def builds(cls, config: TrainingConfig) -> tuple[DecoderKind, ...]:
        own: DecoderKind = "transposed" if config.student.kind == "unet" else "bilinear"
        return (own,) * len(PERTURBATIONS)

    @classmethod
    def alone(cls, config: TrainingConfig) -> tuple[str, ...]:
        """The main decoder has no gradient there."""
        return ("up.", "head.")

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        host, (labelled, unlabelled) = self.host, batch
        view, mask = self.weak_views(batch, draw)
        with host.autocast():
            levels = host.student.encode(host.normalise(view))
            main = host.student.decode(levels).float()
            others = [
                host.student.decode([perturb(level, draw) for level in levels], number).float()
                for number, perturb in enumerate(PERTURBATIONS, start=1)
            ]
        total, figures = main.new_zeros(()), {}
        n = len(labelled)
        if mask is not None:
            costs = [self.supervised(logits[:n], mask) for logits in (main, *others)]
            supervised = torch.stack(costs).mean()
            total, figures["supervised"] = total + supervised, supervised.detach()
        weight = self.unlabelled_weight(share_done)
        if len(unlabelled) and weight:
            consistency = agreement(main[n:], [logits[n:] for logits in others])
            total, figures["consistency"] = total + weight * consistency, consistency.detach()
        return total, figures

    def unlabelled_weight(self, share_done: float) -> float:
        return self.settings.weight_semi * WEIGHT * sigmoid_rampup(share_done, RAMP)


def agreement(main: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Mean over the auxiliary decoders of the squared difference to the main one, whose answer gets no gradient. All
    are B x C x H x W logits."""
    return torch.stack([consistency_loss(logits, main) for logits in others]).mean()


def feature_noise(x: Tensor, draw: torch.Generator) -> Tensor:
    """x + x U(-0.3, 0.3), one draw for each number of B x C x H x W."""
    factor = 1 + NOISE * (2 * torch.rand(x.shape, generator=device_generator(draw, x.device), device=x.device) - 1)
    return x * factor.to(x)


def feature_dropout(x: Tensor, draw: torch.Generator, share: float = DROPOUT) -> Tensor:
    """Whole channels of B x C x H x W left out, each with probability `share`, the others scaled up."""
    kept = torch.rand(*x.shape[:2], 1, 1, generator=draw) >= share
    return x * sent(x.device, kept / (1 - share))[0].to(x)


def feature_drop(x: Tensor, draw: torch.Generator) -> Tensor:
    """Places of B x C x H x W left out at which the mean over the channels is near its maximum; a map that is zero
    everywhere stays as it is."""
    mean = x.detach().mean(dim=1, keepdim=True)
    most = mean.amax(dim=(2, 3), keepdim=True)
    (drawn,) = sent(x.device, torch.rand(len(x), 1, 1, 1, generator=draw))
    share = DROP_FROM + (DROP_TO - DROP_FROM) * drawn.to(x)
    return x * ((mean < share * most) | (most <= 0)).to(x)


PERTURBATIONS: tuple[Callable[[Tensor, torch.Generator], Tensor], ...] = (feature_noise, feature_dropout, feature_drop)
"""One for each auxiliary decoder; each acts on every level."""
