"""Public constants that tell the sentences of one kind apart.

The token features of a pretrained encoder are nearly parallel for sentences that differ in a word: what "left" and
"right" change is small beside what they share, and a projection learns it late or never. So features are standardised,
dimension by dimension, with the mean and the standard deviation over made-up sentences: the same at every site, and
about nobody.
"""

from __future__ import annotations

import itertools
from functools import cache

from torch import Tensor

_WHAT = ("opacity", "lesion", "infected area", "polyp", "nodule", "growth", "cell cluster", "dense region")
_HOW = ("one small", "two large", "three faint", "several medium", "no", "a single")
_WHERE = (
    "in the upper left lung",
    "in the lower right lung",
    "in the middle of the picture",
    "in both lungs",
    "at the top right",
    "at the bottom left",
    "in the left upper field and the right lower field",
    "all over the left side",
)
_FORMS = ("{how} {what} {where}.", "Unilateral finding: {what} {where}, {how}.", "Bilateral, {where}: {how} {what}.")
LEAST_SPREAD = 0.1
"""Of the median over the dimensions: one in which the made-up sentences hardly differ is not blown up."""


@cache
def made_up_sentences() -> tuple[str, ...]:
    """Sentences about findings, their number, size, side and place."""
    cases = itertools.product(_WHAT, _HOW, _WHERE)
    return tuple(
        _FORMS[number % len(_FORMS)].format(what=what, how=how, where=where)
        for number, (what, how, where) in enumerate(cases)
        # a seventh of them, in which every part is seen about as often as any other
        if number % 7 == 0
    )


def moments(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by dimension, E each, over the real tokens of n x L x E features."""
    real = tokens.float()[mask]
    spread = real.std(0)
    return real.mean(0), spread.clamp(min=LEAST_SPREAD * float(spread.median()))
