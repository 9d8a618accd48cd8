"""The EMA teacher, Eq. 12. It never leaves the site."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dusss_core.losses.schedules import ema_alpha
from dusss_core.models.weights import load_tensors


class Teacher:
    """An exponential moving average of a student's weights and buffers, in eval mode, without gradients."""

    def __init__(self, student: nn.Module):
        self.model = copy.deepcopy(student).eval().requires_grad_(False)
        self.follows_buffers = True
        """Whether running means and variances are averaged too."""
        self._student: nn.Module | None = None

    def become(self, student: nn.Module) -> None:
        """Take the student's weights and buffers, of the parts that the teacher has."""
        own = self.model.state_dict()
        load_tensors(self.model, {name: value for name, value in student.state_dict().items() if name in own})

    @torch.no_grad()
    def follow(self, student: nn.Module, step: int, ema: float) -> None:
        """theta_t = alpha theta_t + (1 - alpha) theta_s with alpha = min(1 - 1 / (step + 1), ema).

        Buffers (running means and variances) follow too; counters are copied.

        Args:
            step: student steps so far in this phase, 0 before the first.
        """
        if self._student is not student:
            self._pair(student)
        torch._foreach_lerp_(self._own, self._followed, 1 - ema_alpha(step, ema))
        if self._counters:
            torch._foreach_copy_(self._counters, self._counted)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Logits, B x classes x H x W, Eq. 13."""
        return self.model(image)

    def _pair(self, student: nn.Module) -> None:
        """Lists of what follows and of what is followed, made once: to collect them takes longer than to add them up.
        They hold as long as the tensors of both models are changed in place, as everything here does."""
        own = self.model.state_dict()
        buffers = {name for name, _ in student.named_buffers()} if not self.follows_buffers else ()
        followed = {name: value for name, value in student.state_dict().items() if name in own and name not in buffers}
        pairs = [(own[name], value) for name, value in followed.items()]
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        counted = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._own, self._followed = [a for a, _ in averaged], [b for _, b in averaged]
        self._counters, self._counted = [a for a, _ in counted], [b for _, b in counted]
        self._student = student
