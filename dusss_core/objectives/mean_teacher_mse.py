"""Mean teacher as the field's common code has it (Tarvainen and Valpola 2017; SSL4MIS, github.com/HiLab-git/SSL4MIS).

    L = L_sup + w(t) mean (p_student(x) - p_teacher(x + noise))^2,   noise = clip(N(0, 0.1^2), -0.2, 0.2)

w(t) is WEIGHT times a ramp over the whole phase, and 0 over its first START (1,000 of 30,000 steps there). The teacher
is an average of the parameters alone, and normalises with its own batch, as published. It differs from
`preset: mean_teacher` in all of this: that one learns hard from a strong view, by CE + Dice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dusss_core.losses import probabilities, sigmoid_rampup
from dusss_core.objectives.objective import Batch, Host, Values
from dusss_core.objectives.teacher import WithTeacher
from dusss_core.seeds import device_generator

WEIGHT = 0.1
"""Of the consistency at the end of the phase, beside `segment.weight_semi`."""
START = 1 / 30
"""Share of the phase in which the teacher is not heard."""
NOISE, NOISE_LIMIT = 0.1, 0.2
"""Standard deviation and bound of the noise on the teacher's normalised picture."""


class MeanTeacherMSE(WithTeacher):
    """Student and teacher see the same weak view, the teacher with noise."""

    def __init__(self, host: Host):
        super().__init__(host)
        self.teacher.follows_buffers = False
        # as published: it normalises with its own batch
        self.teacher.model.train()

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        host, (labelled, unlabelled) = self.host, batch
        view, mask = self.weak_views(batch, draw)
        x = host.normalise(view)
        with host.autocast():
            logits = host.student(x).float()
        total, figures = logits.new_zeros(()), {}
        if mask is not None:
            supervised = self.supervised(logits[: len(labelled)], mask)
            total, figures["supervised"] = total + supervised, supervised.detach()
        weight = self.unlabelled_weight(share_done)
        if len(unlabelled) and weight:
            own = x[len(labelled) :]
            noise = torch.randn(own.shape, generator=device_generator(draw, own.device), device=own.device)
            noise = noise.to(own).mul_(NOISE).clamp_(-NOISE_LIMIT, NOISE_LIMIT)
            with host.autocast():
                target = self.teacher(own + noise)
            consistency = consistency_loss(logits[len(labelled) :], target)
            total, figures["consistency"] = total + weight * consistency, consistency.detach()
        return total, figures

    def unlabelled_weight(self, share_done: float) -> float:
        if share_done < START:
            return 0.0
        return self.settings.weight_semi * WEIGHT * sigmoid_rampup(share_done, 1.0)


def consistency_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over pictures, classes and pixels of the squared difference of probabilities; the teacher's get no
    gradient. Both are B x C x H x W."""
    return (probabilities(student_logits) - probabilities(teacher_logits).detach()).square().mean()
