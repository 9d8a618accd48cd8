"""Whether text-guided masks earn their place at a site, told on its validation pictures.

The student learns from text-guided masks as if they were true. Where they are worse than what the site has without
them, they teach what is wrong: so their Dice on validation pictures is compared, picture by picture, with that of the
teacher, of the global student, and of a plain student, which has learnt from the site's labelled pictures alone. The
plain one is needed since the other two have learnt from the text-guided masks themselves: they may be no better than
these, just because these are bad.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from dusss_core.config import TrainingConfig
from dusss_core.fingerprints import fingerprint, same
from dusss_core.inference import predict_logits
from dusss_core.phases import Phase
from dusss_core.records import Split
from dusss_core.runtime import runtime_of
from dusss_core.text.bank import TextBank
from dusss_core.training.evaluation import scores_of_logits, text_guided_masks

SPAN = 0.1
"""Text-guided masks that lose by this much Dice, beyond what chance would explain, weigh nothing."""
MOST = 200
"""Validation pictures that are looked at, spread over all: more would make rounds longer and the verdict no other."""
_SPREAD = 0.2
"""Standard deviation between pictures of a difference of Dice, as it is assumed before any was seen: it counts as one
picture, so that of one or two pictures none is called better than it can be known."""
_PLAIN, _PICTURES = "plain", "pictures"
SHARE = "share"
"""In the state of a judge: what text-guided masks weigh."""


def dice_of_text(
    config: TrainingConfig,
    vlm: dict[str, Tensor],
    val: Split,
    text: TextBank | None,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Dice of the text-guided mask of each validation picture: N, float64, NaN where there is no mask or no sentence.

    Args:
        vlm: a whole vision-language model's tensors.
    """
    found = np.full(len(val), np.nan)
    judged = np.flatnonzero(val.masked & val.has_text)
    if len(judged):
        split = val.select(judged)
        logits = text_guided_masks(config, vlm, split, text, device)
        found[judged] = scores_of_logits(config, logits, split).per_image()["dice"]
    return found


def share_of_text(text: np.ndarray, reference: np.ndarray) -> float:
    """What text-guided masks are to weigh beside a reference, in [0, 1]; 1: in full.

    1 as long as the mean difference of Dice lies within two standard errors, then falling to 0 over `SPAN`.

    Args:
        text, reference: Dice of each picture, N; both of the same pictures, at least one.
    """
    lost = reference - text
    spread = (np.square(lost - lost.mean()).sum() + _SPREAD**2) / len(lost)
    beyond_chance = lost.mean() - 2 * np.sqrt(spread / len(lost))
    return float(np.clip(1 - beyond_chance / SPAN, 0.0, 1.0))


@dataclass
class Judge:
    """Compares text-guided masks with what a site has without them.

    Args:
        text: `dice_of_text` of the validation split `val`, at least one of them no NaN.
    """

    config: TrainingConfig
    val: Split
    text: np.ndarray
    device: torch.device
    plain: np.ndarray | None = None
    """Dice of the plain student on the pictures that are judged; None: not trained yet."""
    share: float = 1.0
    """What text-guided masks weigh, in [0, 1], since they were judged last."""
    _positions: np.ndarray = field(init=False)

    def __post_init__(self):
        known = np.flatnonzero(~np.isnan(self.text))
        self._positions = known[np.linspace(0, len(known) - 1, min(len(known), MOST)).round().astype(int)]
        whole = len(self._positions) == len(self.val)
        self._split = self.val if whole else self.val.select(self._positions)

    def dice(self, student: nn.Module) -> np.ndarray:
        """Dice of a student on each of the pictures that are judged."""
        runtime = runtime_of(self.config, Phase.SEGMENT, self.device)
        images = self._split.images
        logits = predict_logits(student, images, self.config.image, self.device, runtime.eval_batch, amp=runtime.amp)
        return scores_of_logits(self.config, logits, self._split).per_image()["dice"]

    def judge(self, students: Mapping[str, nn.Module]) -> dict[str, float]:
        """Figures by name: "text_share", what text-guided masks are to weigh, and the Dice that it follows from:
        "judged_text", and "judged_NAME" of each student and of the plain one."""
        text = self.text[self._positions]
        references = {name: self.dice(student) for name, student in students.items()}
        if self.plain is not None:
            references[_PLAIN] = self.plain
        self.share = min((share_of_text(text, reference) for reference in references.values()), default=1.0)
        means = {f"judged_{name}": float(dice.mean()) for name, dice in {"text": text, **references}.items()}
        return {"text_share": self.share, **means}

    def state(self) -> dict[str, Tensor]:
        """What `load_state` needs."""
        plain = {} if self.plain is None else {_PLAIN: torch.from_numpy(self.plain.copy())}
        return {SHARE: torch.tensor(self.share), _PICTURES: self._pictures, **plain}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back a `state`; one of other pictures is forgotten."""
        if not same(tensors.get(_PICTURES), self._pictures):
            tensors = {}
        self.share, plain = float(tensors.get(SHARE, 1.0)), tensors.get(_PLAIN)
        self.plain = plain.numpy().copy() if plain is not None and len(plain) == len(self._positions) else None

    @cached_property
    def _pictures(self) -> Tensor:
        return fingerprint(self._split, pictures=True)
