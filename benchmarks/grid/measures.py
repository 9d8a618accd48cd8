"""What the masks of several pictures say, beside the mean of each picture's Dice, IoU and HD95.

Pooled Dice    2 overlap / (predicted + true), with the pixels of all pictures counted together: large findings decide
               it, where in the mean over pictures each picture counts the same
Precision      overlap / predicted, of each picture, and the mean of these
Recall         overlap / true, of each picture, and the mean of these
Area by size   predicted / true pixels of all pictures whose true finding takes a certain share of the picture: above 1
               masks are too large, below 1 too small

Empty masks follow one rule, that of Dice: both empty, precision and recall are 1; one of the two empty, both are 0. A
picture without a finding has no place among the sizes. Whatever is not background is foreground.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from itertools import pairwise
from statistics import fmean

import numpy as np

STUDENT, TEXT_MASK, WITH_SENTENCE, PERSONAL = "student", "text_mask", "with_sentence", "personal"
"""Whose masks: the student's, which sees the picture alone; text-guided ones; those of the sum of both logits, or of a
student that is given sentences, with them; those of the student that is a site's own."""
Figures = Mapping[str, np.ndarray]
"""Of N pictures, each value N long: the record's "id", "dice", "iou", perhaps "hd95", and the pixels that
`count_pixels` counts."""

_BOUNDS = (0, 2, 5, 10, 20, 100)
"""Of the sizes of a finding, in % of the picture; the lower one belongs to a size, the upper one to the next."""
SIZES = {f"{low}-{high} %": (low / 100, high / 100) for low, high in pairwise(_BOUNDS)}


def count_pixels(prediction: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Foreground pixels of one picture: {"overlap", "predicted", "true"}, and all its "pixels".

    Args:
        prediction, truth: H x W class indices.
    """
    predicted, true = prediction != 0, truth != 0
    counted = {"overlap": predicted & true, "predicted": predicted, "true": true}
    return {**{name: int(np.count_nonzero(where)) for name, where in counted.items()}, "pixels": truth.size}


def summary(parts: Sequence[Figures], names: Sequence[str] = ("dice", "iou")) -> dict[str, float | None]:
    """Of all pictures of `parts`: the means of `names`, "pooled_dice", "precision" and "recall", to four digits; None
    where there is no picture."""
    if not sum(len(part["dice"]) for part in parts):
        return dict.fromkeys((*names, "pooled_dice", "precision", "recall"))
    overlap, predicted, true = (_joined(parts, name) for name in ("overlap", "predicted", "true"))
    both = (predicted + true).sum()
    return {
        **{name: mean(_joined(parts, name)) for name in names},
        "pooled_dice": round(float(2 * overlap.sum() / both), 4) if both else 1.0,
        "precision": mean(_share(overlap, predicted, true)),
        "recall": mean(_share(overlap, true, predicted)),
    }


def only(figures: Figures, ids: Container[str]) -> Figures:
    """Those of the pictures of these records, in the same order."""
    keep = np.array([str(one) in ids for one in figures["id"]], dtype=bool)
    return {name: values[keep] for name, values in figures.items()}


def area_by_size(parts: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """By the size of the true finding, a key of SIZES: {"n": pictures, "area": predicted over true pixels}. Sizes that
    no picture has are left out."""
    if not parts:
        return {}
    predicted, true, pixels = (_joined(parts, name) for name in ("predicted", "true", "pixels"))
    share = true / np.maximum(pixels, 1)
    found = {}
    for name, (low, high) in SIZES.items():
        there = (true > 0) & (share >= low) & ((share < high) | (high == 1))
        if there.any():
            found[name] = {"n": int(there.sum()), "area": round(float(predicted[there].sum() / true[there].sum()), 3)}
    return found


def mean(values: Sequence[float | None] | np.ndarray) -> float | None:
    """Of those that are known, to four digits; None where none is."""
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    return round(fmean(known), 4) if known else None


def _joined(parts: Sequence[Figures], name: str) -> np.ndarray:
    return np.concatenate([part[name] for part in parts])


def _share(overlap: np.ndarray, of: np.ndarray, other: np.ndarray) -> np.ndarray:
    """overlap / of, by the rule for empty masks."""
    return np.where(of > 0, overlap / np.maximum(of, 1), np.where(other > 0, 0.0, 1.0))
