"""How sure a figure of test pictures is: pooled Dice, how many pictures stand behind a figure, bootstrap intervals.

Two kinds of Dice are told apart: the mean over pictures, where a small finding counts as much as a large one, and the
pooled one, over the pixels of all pictures together, as many papers have it, which is often several points higher.

What `spread` makes may leave a hospital, so it is silent where it would tell of single pictures: no interval of fewer
than FEWEST_GROUPS patients, whose ends could be one patient's own figures, and no bin of the distribution with fewer
than FEWEST_IN_BIN pictures that is not empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

DRAWS = 2000
"""Bootstrap draws."""
LEVEL = 95
"""Per cent of the draws that an interval holds, the middle ones."""
FEWEST_GROUPS = 10
"""Patients (or pictures, where no patient is named) of which an interval is told. Of two or three the ends would be
the smallest and the largest figure of one."""
FEWEST_IN_BIN = 5
"""Pictures in a bin of the distribution that leaves, unless it is empty: others are joined."""
BINS = (0, 20, 40, 60, 80)
"""Where the bins of Dice begin, in hundredths; the last one ends at 100."""
SURE = ("dice", "iou", "hd95")
"""Figures of pictures whose mean has an interval; `dice_pooled` has one too."""
_AT_ONCE = 4_000_000
"""Numbers of a piece of the draws that are held at a time: a million pictures need no more memory than a thousand."""


class Bootstrap:
    """Draws of groups with replacement, always the same ones.

    Args:
        groups: N numbers from 0; what has the same number, such as one patient's pictures, is drawn together.
    """

    def __init__(self, groups: np.ndarray):
        self._groups = np.asarray(groups)
        self._members = np.bincount(self._groups)

    def __len__(self) -> int:
        """Number of groups."""
        return len(self._members)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over what was drawn: N x ... -> DRAWS x ..., float64. Numbers of pictures: of ones."""
        flat = np.asarray(values, dtype=np.float64).reshape(len(self._groups), -1)
        by_group = np.stack([np.bincount(self._groups, column) for column in flat.T], axis=-1)
        drawn = np.concatenate([draws @ by_group for draws in self._draws()])
        return drawn.reshape(DRAWS, *np.shape(values)[1:])

    def _draws(self) -> Iterator[np.ndarray]:
        """How often each group is drawn, some draws x groups at a time."""
        number = len(self._members)
        generator, share = np.random.default_rng(0), np.full(number, 1 / number)
        piece = max(1, _AT_ONCE // number)
        for start in range(0, DRAWS, piece):
            yield generator.multinomial(number, share, min(piece, DRAWS - start)).astype(np.float64)


def interval(draws: np.ndarray) -> tuple[float, float] | None:
    """The middle LEVEL per cent of a figure's draws; NaN, a draw without the figure, is left out; None: all are."""
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return None
    low, high = np.percentile(draws, ((100 - LEVEL) / 2, (100 + LEVEL) / 2))
    return float(low), float(high)


def pooled_dice(pixels: np.ndarray) -> np.ndarray:
    """Dice of summed pixels (`metrics.pixel_counts`): ... x F x 3 -> ... x F; NaN where a class is nowhere."""
    overlap, true, predicted = np.moveaxis(pixels, -1, 0)
    return np.where(true + predicted > 0, 2 * overlap / np.maximum(true + predicted, 1), np.nan)


def over_classes(each: np.ndarray) -> np.ndarray:
    """Mean over the classes that are there: ... x F -> ...; 1 where none is, in truth and prediction."""
    there = ~np.isnan(each)
    total = np.where(there, each, 0).sum(-1)
    return np.where(there.any(-1), total / np.maximum(there.sum(-1), 1), 1.0)


def numbered(names: Sequence[object]) -> np.ndarray:
    """N numbers from 0, in order of appearance: equal names have the same."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def groups_of(patients: Sequence[str], ids: Sequence[str]) -> np.ndarray:
    """N numbers from 0: records of one patient have the same, and one whose patient is not known ('') has its own."""
    return numbered([("patient", p) if p else ("id", i) for p, i in zip(patients, ids, strict=True)])


def spread(each: Mapping[str, np.ndarray], pixels: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """What stands behind the means of test figures, as single numbers that may leave a hospital.

    Args:
        each: figures of N pictures, N >= 1: "dice", "iou", perhaps "hd95".
        pixels: N x F x 3, of `metrics.pixel_counts`.
        groups: N numbers; pictures of one patient have the same.

    Returns:
        "dice_pooled"; "n_positive", pictures whose truth has a finding; of several classes also "dice_pooled_1" and so
        on, left out where a class is nowhere, and "n_positive_1". Of FEWEST_GROUPS groups or more "NAME_low" and
        "NAME_high" of each figure; of FEWEST_IN_BIN pictures or more "dice_from_0" and so on: pictures whose Dice is
        at least that many hundredths and below the next bin that is named.
    """
    whole, true = pooled_dice(pixels.sum(0)), pixels[..., 1] > 0
    found = {"dice_pooled": float(over_classes(whole)), "n_positive": float(true.any(-1).sum())}
    if pixels.shape[1] > 1:
        found |= {f"dice_pooled_{i}": float(value) for i, value in enumerate(whole, 1) if not np.isnan(value)}
        found |= {f"n_positive_{i}": float(number) for i, number in enumerate(true.sum(0), 1)}
    bootstrap = Bootstrap(groups)
    if len(bootstrap) >= FEWEST_GROUPS:
        n = bootstrap.sums(np.ones(len(groups)))
        draws = {name: bootstrap.sums(each[name]) / n for name in SURE if name in each}
        draws["dice_pooled"] = over_classes(pooled_dice(bootstrap.sums(pixels)))
        for name, values in draws.items():
            found[f"{name}_low"], found[f"{name}_high"] = interval(values)
    return found | {f"dice_from_{start}": float(n) for start, n in _bins(each["dice"]).items()}


def without_spread(figures: Mapping[str, float]) -> dict[str, float]:
    """The means alone, of figures some of which `spread` made."""
    made = ("_low", "_high")
    return {
        name: value
        for name, value in figures.items()
        if not name.endswith(made) and not any(part in name for part in ("dice_pooled", "dice_from_", "n_positive"))
    }


def _bins(dice: np.ndarray) -> dict[int, int]:
    """Pictures by where their bin of Dice begins; each empty or of FEWEST_IN_BIN or more. {}: there are too few."""
    if len(dice) < FEWEST_IN_BIN:
        return {}
    # 1e-9: a Dice of 0.6 may be stored as a hair less
    places = np.clip(np.searchsorted(BINS, 100 * dice + 1e-9, side="right") - 1, 0, len(BINS) - 1)
    joined: dict[int, int] = {}
    begun, held = BINS[0], 0
    for start, number in zip(BINS, np.bincount(places, minlength=len(BINS)).tolist(), strict=True):
        begun, held = (start if held == 0 else begun), held + number
        if held == 0 or held >= FEWEST_IN_BIN:
            joined[begun], held = held, 0
    if held:  # too few are left over: they join the last bin that has pictures
        while not joined[max(joined)]:
            del joined[max(joined)]
        joined[max(joined)] += held
    return joined
