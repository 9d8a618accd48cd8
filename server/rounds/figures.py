"""Single figures of a site, checked before anything is computed or written with them.

A figure has a name that the run's files have a place for, and lies where such a figure can lie: a score between 0 and
1, a count whole and not below 0. No figure is so large that a sum, a mean or a weight of many of them is not finite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

GROUPS = ("train", "val", "test", "text_mask", "personal", "pseudo", "state")
"""What may stand before the point of a figure's name."""
SINGLE = ("num-examples", "seconds", "ledger-charges")
"""Figures without a point, in the answer to a message that trains or evaluates."""
COUNTS = ("n_labelled", "n_unlabelled", "n_val", "n_test", "n_text", "n_labelled_text", "n_records")
"""Of the answer to a query."""
MOST_FIGURES = 512
MOST_PICTURES = 10**8
MOST_ROUNDS = 10**6
"""As in a message to a site."""
LONGEST = 1e6
"""Of a distance in a picture, in pixels."""
LARGEST = 1e12
"""Of the size of a loss, or of what else has no range of its own."""
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_SCORE = re.compile(r"(?:[a-z0-9]+_)*(?:dice|iou|precision|recall)(?:_pooled)?(?:_\d+)?(?:_(?:low|high))?")
_SHARE = re.compile(r"train\.(?:text_share|judged_[a-z]+|dsss_p\d+|personal_alpha)")
"""What text-guided masks are judged by at a site, and other shares: in [0, 1], though told with what was trained."""
_PICTURES = re.compile(r"test\.(?:n|n_positive(?:_\d+)?|(?:text_)?dice_from_\d+|text_n(?:_positive(?:_\d+)?)?)")
"""Counts of test pictures."""
_DISTANCE = re.compile(r"(?:[a-z0-9]+_)*hd95(?:_\d+)?(?:_(?:low|high))?")
_SLACK = 1e-6
"""By which rounding may push a mean of scores out of its range."""
_ROUNDS = ("personal.round", "state.age")
_WHOLE = re.compile(rf"n_[a-z_]+|.*\.n|num-examples|ledger-charges|{_PICTURES.pattern}")
_SCORED = ("val", "test", "text_mask", "personal", "pseudo")


class Impossible(ValueError):
    """A figure that no honest site sends; the text names it."""

    beyond_count = False
    """More pictures than the site said it has: it may have got new ones."""


def checked(sent: Mapping[str, object], counts: Mapping[str, int] | None = None) -> dict[str, float]:
    """The figures of an answer, without those that are not finite.

    Args:
        counts: what the site said it has; n_test pictures bound how many it can have been tested on.

    Raises:
        Impossible: a name that has no place, a list, too many, or a number out of its range.
    """
    if len(sent) > MOST_FIGURES:
        raise Impossible(f"{len(sent)} figures, more than the {MOST_FIGURES} that are taken")
    figures: dict[str, float] = {}
    for name, value in sent.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise Impossible(f"metric name {printable(name)!r} is not allowed")
        if isinstance(value, list):
            raise Impossible(f"metric '{name}' is a list; only single figures are taken")
        if not _has_a_place(name):
            raise Impossible(f"metric name '{name}' is not allowed")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Impossible(f"metric '{name}' is no number")
        if math.isfinite(value):
            low, high = _range(name, counts or {})
            if not low <= value <= high:
                impossible = Impossible(f"'{name}' is {value:g}, not between {low if low <= -1 else 0:g} and {high:g}")
                impossible.beyond_count = name == "test.n" and value > high
                raise impossible
            if (name in _ROUNDS or _WHOLE.fullmatch(name)) and value != int(value):
                raise Impossible(f"'{name}' is {value:g}, and no whole number")
            figures[name] = value
    return figures


def printable(text: object) -> str:
    """Text of a site for logs and reports: one line, no control characters, not long."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:300])


def _has_a_place(name: str) -> bool:
    group, point, rest = name.partition(".")
    return (group in GROUPS and bool(rest)) if point else name in (*SINGLE, *COUNTS)


def _range(name: str, counts: Mapping[str, int]) -> tuple[float, float]:
    group, _, rest = name.partition(".")
    if (group in _SCORED and _SCORE.fullmatch(rest)) or _SHARE.fullmatch(name):
        return -_SLACK, 1 + _SLACK
    if name in COUNTS or name == "num-examples":
        return 0, MOST_PICTURES
    if _PICTURES.fullmatch(name):
        return 0, counts.get("n_test", MOST_PICTURES)
    if name in _ROUNDS:
        return 0, MOST_ROUNDS
    if _DISTANCE.fullmatch(rest):
        return 0, LONGEST
    if rest == "n":
        return 0, MOST_PICTURES
    if name in ("seconds", "ledger-charges"):
        return 0, LARGEST
    return -LARGEST, LARGEST
