"""Which round's model is best, and when a phase has seen enough: one rule for the federation and for plain training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import median

from dusss_core.phases import Phase
from server.rounds.shares import capped

CRITERIA = ("val.text_dice", "val.dice")
"""What the best round is chosen by: the first that any site sends. A student that is given sentences is chosen by its
figures with them. Where no site has validation masks there is nothing to choose by: the validation
loss of step 1 is a contrast within small batches, moves by less than its noise, and would choose at random. Then the
last round's model is taken, and no phase ends early."""


@dataclass
class Selection:
    """Tracks validation over the rounds of one phase.

    The metrics that arrive in round r are of the model that round r - 1 made; round 0's model is the initial one,
    which is never chosen.
    """

    phase: Phase
    patience: int
    by_median: bool = False
    """By the median of the sites' figures, and not by their mean over pictures."""
    max_share: float | None = None
    """Of one site in that mean, at most."""
    best_round: int | None = None
    best_score: float | None = None
    waited: int = 0

    def observe(self, model_round: int, sites: Iterable[tuple[float, Mapping[str, float]]]) -> None:
        """Take in the validation of the model of `model_round`.

        Args:
            sites: for each site, its number of validation pictures and its metrics.
        """
        if model_round < 1:
            return
        score = self._score(list(sites))
        if score is None:
            return
        better = self.best_score is None or score > self.best_score
        self.waited = 0 if better else self.waited + 1
        # Of equals the later one is taken, which was trained longer: at first all masks may score 0.
        if better or score == self.best_score:
            self.best_round, self.best_score = model_round, score

    @property
    def chooses(self) -> bool:
        """Whether there is anything to choose by."""
        return self.best_round is not None

    @property
    def exhausted(self) -> bool:
        """Whether `patience` rounds went by without a better model."""
        return self.waited >= self.patience

    def state(self) -> dict:
        """What `restore` needs, ready for JSON."""
        return {key: value for key, value in asdict(self).items() if key not in _RULES}

    def restore(self, state: Mapping) -> None:
        """Take back a `state`; patience and the rule stay as they are now."""
        for key, value in state.items():
            if key not in _SETTINGS:
                setattr(self, key, value)

    def _score(self, sites: list[tuple[float, Mapping[str, float]]]) -> float | None:
        scores = (self._over_sites([(count, metrics.get(name)) for count, metrics in sites]) for name in CRITERIA)
        return next((score for score in scores if score is not None), None)

    def _over_sites(self, pairs: list[tuple[float, float | None]]) -> float | None:
        told = [(count, score) for count, score in pairs if count > 0 and score is not None and math.isfinite(score)]
        if not told:
            return None
        scores = [score for _, score in told]
        if self.by_median:
            return median(scores)
        return weighted_mean(zip(capped([count for count, _ in told], self.max_share), scores, strict=True))


_RULES = ("by_median", "max_share")
_SETTINGS = ("phase", "patience", *_RULES)
"""Of the study, and not of what was seen."""


def weighted_mean(pairs: Iterable[tuple[float | None, float | None]]) -> float | None:
    """Mean of the values that are there and finite, by weights that are there; None if there is none."""
    usable = [(weight, value) for weight, value in pairs if weight and value is not None and math.isfinite(value)]
    usable = [(weight, value) for weight, value in usable if weight > 0]
    total = sum(weight for weight, _ in usable)
    return sum(weight * value for weight, value in usable) / total if usable else None


NOTHING_TO_CHOOSE_BY = (
    "there is no validation Dice (no site has validation pictures with masks, or nothing uses text-guided masks): the "
    "last round's model is final, and no patience ends the phase"
)
