"""The EMA teacher, Eq. 12. It never leaves the site."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dusss_core.losses.schedules import ema_alpha


class Teacher:
    """An exponential moving average of a student's weights and buffers, in eval mode, without gradients."""

    def __init__(self, student: nn.Module):
        self.model = copy.deepcopy(student).eval().requires_grad_(False)
        self.follows_buffers = True
        """Whether running means and variances are averaged too."""

    @torch.no_grad()
    def follow(self, student: nn.Module, step: int, ema: float) -> None:
        """theta_t = alpha theta_t + (1 - alpha) theta_s with alpha = min(1 - 1 / (step + 1), ema).

        Buffers (running means and variances) follow too; counters are copied.

        Args:
            step: student steps so far in this phase, 0 before the first.
        """
        alpha = ema_alpha(step, ema)
        own = self.model.state_dict()
        buffers = {name for name, _ in student.named_buffers()} if not self.follows_buffers else ()
        for name, value in student.state_dict().items():
            if name in buffers:
                continue
            if value.is_floating_point():
                own[name].lerp_(value, 1 - alpha)
            else:
                own[name].copy_(value)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Logits, B x classes x H x W, Eq. 13."""
        return self.model(image)
