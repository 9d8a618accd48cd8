"""Numbers that depend on the step, and early stopping."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from dusss_core.config import OptimizerConfig


def sigmoid_rampup(step: float, length: float) -> float:
    """exp(-5 (1 - t)^2), t = step / length in [0, 1]: from 0.0067 at step 0 to 1; always 1 for length 0."""
    if length <= 0:
        return 1.0
    t = min(max(step / length, 0.0), 1.0)
    return math.exp(-5 * (1 - t) ** 2)


def ema_alpha(step: int, maximum: float) -> float:
    """alpha of Eq. 12 after the step with number `step`, from 0: min(1 - 1 / (step + 1), maximum).

    At step 0 it is 0: the teacher becomes a copy of the student.
    """
    return min(1 - 1 / (step + 1), maximum)


def cosine_lr(step: int, total: int, config: OptimizerConfig) -> float:
    """Learning rate of step `step` of `total`, from 0; a pure function, so a resumed run continues it
    exactly.

    Rises linearly over `warmup` of the steps (the first of them already learns a little), then falls along
    half a cosine to lr * min_lr_ratio at the last step, where it stays.
    """
    warmup = round(config.warmup * total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    t = min((step - warmup) / max(total - 1 - warmup, 1), 1.0)
    low = config.lr * config.min_lr_ratio
    return low + (config.lr - low) * (1 + math.cos(math.pi * t)) / 2


@dataclass
class Patience:
    """Early stopping: how long since a figure, the higher the better, was last improved."""

    limit: int
    """Updates without improvement after which it is exhausted."""
    best: float | None = None
    waited: int = 0

    def update(self, value: float) -> bool:
        """Takes the next figure and says whether it is the best so far; equal is not better, NaN never is."""
        improved = not math.isnan(value) and (self.best is None or value > self.best)
        if improved:
            self.best, self.waited = float(value), 0
        else:
            self.waited += 1
        return improved

    @property
    def exhausted(self) -> bool:
        return self.waited >= self.limit

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` gives the same state back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Patience:
        return cls(**state)
