"""Which round's model is best, and when a phase has seen enough: one rule for the federation and for plain training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median

from dusss_core.phases import Phase
from server.rounds.shares import capped

CRITERIA = ("val.text_dice", "val.dice")
"""What the best round is chosen by: the first that any site sends. A student that is given sentences is chosen by its
figures with them. Where no site has validation masks there is nothing to choose by: the validation
loss of step 1 is a contrast within small batches, moves by less than its noise, and would choose at random. Then the
last round's model is taken, and no phase ends early."""

Told = dict[str, tuple[float, float]]
"""By site its number of validation pictures and a score."""


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
    criterion: str = ""
    """Of CRITERIA that which was told first: figures of different kinds are not compared."""
    best_sites: Told = field(default_factory=dict)
    """What each site told of the best model; empty in a state of an earlier release."""

    def observe(self, model_round: int, sites: Mapping[str, tuple[float, Mapping[str, float]]]) -> None:
        """Take in the validation of the model of `model_round`.

        Two models are compared by the sites that have told of both: the mean without a site that is lost for a round
        is another mean, and may be far above all others.

        Args:
            sites: of each site, by name, its number of validation pictures and its metrics.
        """
        if model_round < 1:
            return
        self.criterion = self.criterion or next((name for name in CRITERIA if _told(sites, name)), "")
        told = _told(sites, self.criterion)
        score = self._over_sites(told, told)
        if score is None:
            return
        before, now = self.best_score, score
        if self.best_sites:
            if not (both := told.keys() & self.best_sites.keys()):
                return
            before, now = self._over_sites(told, self.best_sites, both), self._over_sites(told, told, both)
        better = before is None or now > before
        self.waited = 0 if better else self.waited + 1
        # Of equals the later one is taken, which was trained longer: at first all masks may score 0.
        if better or now == before:
            self.best_round, self.best_score, self.best_sites = model_round, score, told

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

    def _over_sites(self, counts: Told, scores: Told, sites: Iterable[str] | None = None) -> float | None:
        """Median of `scores` over `sites` (all), or mean, in which each weighs its pictures in `counts`."""
        chosen = sorted(scores if sites is None else sites)
        if not chosen:
            return None
        values = [scores[site][1] for site in chosen]
        if self.by_median:
            return median(values)
        shares = capped([counts[site][0] for site in chosen], self.max_share)
        return weighted_mean(zip(shares, values, strict=True))


def _told(sites: Mapping[str, tuple[float, Mapping[str, float]]], name: str) -> Told:
    """The sites that tell a figure, and their pictures."""
    found = {site: (count, metrics.get(name)) for site, (count, metrics) in sites.items()}
    return {
        site: (count, score)
        for site, (count, score) in found.items()
        if count > 0 and score is not None and math.isfinite(score)
    }


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
