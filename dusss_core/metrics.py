"""Foreground Dice, IoU and HD95 of single pictures, and their means.

Rules for a class that is missing: missing in truth and prediction, Dice and IoU are 1 and HD95 is 0; missing
in one of the two, Dice and IoU are 0 and HD95 is the picture's diagonal. With several foreground classes a
picture's figure is the mean over those present in its truth or its prediction.

The figures equal MONAI's (tests hold that). They are counted here because its import alone takes seconds, in
every process that validates a model, and its HD95 takes 3 to 5 times as long at 112 to 224 pixels.
"""

from __future__ import annotations

import numpy as np


def to_classes(logits: np.ndarray) -> np.ndarray:
    """Class indices, uint8, of logits (... x C x H x W -> ... x H x W).

    One channel: 1 where the probability is above 0.5. Several: the most probable class.
    """
    if logits.shape[-3] == 1:
        return (logits[..., 0, :, :] > 0).astype(np.uint8)
    return logits.argmax(axis=-3).astype(np.uint8)


def per_image(
    prediction: np.ndarray, truth: np.ndarray, classes: int, *, distances: bool = True
) -> dict[str, np.ndarray]:
    """Figures of each picture: {"dice": N, "iou": N, "hd95": N}, float64; of several classes also
    {"dice_1": N, ...}, the Dice of each, NaN where it is missing in truth and prediction.

    Args:
        prediction, truth: N x H x W class indices.
        classes: foreground classes. 1: whatever is not 0 is foreground; C > 1: classes 1 to C.
        distances: with "hd95", the 95 % Hausdorff distance in pixels: the larger of the two directed 95 %
            quantiles of the distances between the outlines. It takes most of the time.

    Raises ValueError where the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    predicted, true = _foreground(prediction, classes), _foreground(truth, classes)
    overlap, union = _count(predicted & true), _count(predicted | true)
    present = union > 0
    figures = {
        "dice": _mean_of_present(2 * overlap / np.maximum(overlap + union, 1), present, otherwise=1.0),
        "iou": _mean_of_present(overlap / np.maximum(union, 1), present, otherwise=1.0),
    }
    if classes > 1:
        dice = np.where(present, 2 * overlap / np.maximum(overlap + union, 1), np.nan)
        figures |= {f"dice_{index}": dice[:, index - 1] for index in range(1, classes + 1)}
    if distances:
        hd95 = np.zeros(present.shape)
        for place in zip(*np.nonzero(present), strict=True):
            hd95[place] = _hd95(predicted[place], true[place])
        figures["hd95"] = _mean_of_present(hd95, present, otherwise=0.0)
    return figures


def mean(figures: dict[str, np.ndarray]) -> dict[str, float]:
    """Plain means over the pictures, and their number `n`; only {"n": 0} when there are none. The mean of a class
    is over the pictures that have it, in truth or prediction; a class that no picture has is left out."""
    n = len(next(iter(figures.values()), ()))
    if n == 0:
        return {"n": 0}
    known = {name: values[~np.isnan(values)] for name, values in figures.items()}
    return {**{name: float(np.mean(values)) for name, values in known.items() if len(values)}, "n": n}


def pixel_counts(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each picture and foreground class: N x H x W class indices -> N x F x 3, int64: in both, in the truth,
    in the prediction."""
    predicted, true = _foreground(prediction, classes), _foreground(truth, classes)
    return np.stack([_count(predicted & true), _count(true), _count(predicted)], axis=-1)


class Scores:
    """Figures of pictures that come batch by batch, possibly of different sizes.

    Args:
        pixels: also count pixels.
    """

    def __init__(self, classes: int, *, distances: bool = True, pixels: bool = False):
        self._classes = classes
        self._distances = distances
        self._batches: list[dict[str, np.ndarray]] = []
        self._pixels: list[np.ndarray] | None = [] if pixels else None

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """N x H x W class indices each."""
        self._batches.append(per_image(prediction, truth, self._classes, distances=self._distances))
        if self._pixels is not None:
            self._pixels.append(pixel_counts(prediction, truth, self._classes))

    def per_image(self) -> dict[str, np.ndarray]:
        """The figures of all pictures so far, in order; {} when there are none."""
        if not self._batches:
            return {}
        return {name: np.concatenate([batch[name] for batch in self._batches]) for name in self._batches[0]}

    def pixels(self) -> np.ndarray:
        """`pixel_counts` of all pictures so far, in order: N x F x 3. At least one picture was added."""
        return np.concatenate(self._pixels)

    def mean(self) -> dict[str, float]:
        """Plain means over the pictures so far, and their number `n`."""
        return mean(self.per_image())


def _foreground(indices: np.ndarray, classes: int) -> np.ndarray:
    """N x F x H x W, bool, one channel per foreground class."""
    if classes == 1:
        return (indices != 0)[:, None]
    return np.stack([indices == index for index in range(1, classes + 1)], axis=1)


def _count(pixels: np.ndarray) -> np.ndarray:
    """N x F."""
    return np.count_nonzero(pixels, axis=(2, 3))


def _mean_of_present(figures: np.ndarray, present: np.ndarray, *, otherwise: float) -> np.ndarray:
    """Mean over the classes that are present: N x F -> N; `otherwise` where none is."""
    count = present.sum(axis=1)
    total = np.where(present, figures, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), otherwise)


def _hd95(predicted: np.ndarray, true: np.ndarray) -> float:
    """Of two H x W masks that are not both empty."""
    from scipy.spatial import KDTree

    if not (predicted.any() and true.any()):
        return float(np.hypot(*true.shape))
    outlines = _outline(predicted), _outline(true)
    # outlines are few pixels: a tree over them is quicker than distances of the whole plane
    directed = [KDTree(b).query(a)[0] for a, b in (outlines, outlines[::-1])]
    return float(max(np.percentile(values, 95) for values in directed))


def _outline(mask: np.ndarray) -> np.ndarray:
    """Coordinates of the mask's pixels with a neighbour, of four, outside the mask or the picture: M x 2."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~inside)
