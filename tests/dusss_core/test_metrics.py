import math

import numpy as np
import pytest
import torch

from dusss_core.metrics import Scores, mean, per_image, to_classes

SIZE = 24
DIAGONAL = math.hypot(SIZE, SIZE)


def blobs(records: int, seed: int, classes: int = 1) -> np.ndarray:
    """Pictures of one rectangle per class, some reaching the border."""
    draw = np.random.default_rng(seed)
    out = np.zeros((records, SIZE, SIZE), dtype=np.uint8)
    for picture in out:
        for index in range(1, classes + 1):
            y, x = draw.integers(0, SIZE - 4, size=2)
            height, width = draw.integers(2, 14, size=2)
            picture[y : y + height, x : x + width] = index
    return out


def naive(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Dice, IoU and HD95 of one binary picture, pixel by pixel."""
    if not prediction.any() and not truth.any():
        return 1.0, 1.0, 0.0
    overlap = sum(bool(p) and bool(t) for p, t in zip(prediction.flat, truth.flat, strict=True))
    size = int(prediction.sum()) + int(truth.sum())
    if not prediction.any() or not truth.any():
        return 0.0, 0.0, DIAGONAL
    a, b = outline(prediction), outline(truth)
    to_b = [min(math.dist(p, q) for q in b) for p in a]
    to_a = [min(math.dist(p, q) for q in a) for p in b]
    return (
        2 * overlap / size,
        overlap / (size - overlap),
        max(np.percentile(to_b, 95), np.percentile(to_a, 95)),
    )


def outline(mask: np.ndarray) -> list[tuple[int, int]]:
    def inside(y, x):
        return 0 <= y < SIZE and 0 <= x < SIZE and bool(mask[y, x])

    around = ((0, 1), (1, 0), (0, -1), (-1, 0))
    return [
        (y, x)
        for y in range(SIZE)
        for x in range(SIZE)
        if inside(y, x) and not all(inside(y + dy, x + dx) for dy, dx in around)
    ]


def test_figures_of_one_class_are_the_naive_ones():
    prediction, truth = blobs(8, 1), blobs(8, 2)
    prediction[0] = truth[0] = 0
    prediction[1] = 0
    truth[2] = 0
    prediction[3] = truth[3]
    prediction[4] = 1
    prediction[5], truth[5] = 0, 0
    prediction[5, 0, 0] = truth[5, -1, -1] = 1
    got = per_image(prediction, truth, 1)
    expected = np.array([naive(p, t) for p, t in zip(prediction, truth, strict=True)]).T
    for name, wanted in zip(("dice", "iou", "hd95"), expected, strict=True):
        np.testing.assert_allclose(got[name], wanted, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("prediction", "truth", "dice", "hd95"),
    [
        ("empty", "empty", 1, 0),
        ("empty", "full", 0, DIAGONAL),
        ("full", "empty", 0, DIAGONAL),
        ("full", "full", 1, 0),
    ],
)
def test_the_rule_for_empty_masks(prediction, truth, dice, hd95):
    mask = {"empty": np.zeros((1, SIZE, SIZE), np.uint8), "full": np.ones((1, SIZE, SIZE), np.uint8)}
    got = per_image(mask[prediction], mask[truth], 1)
    assert (got["dice"][0], got["iou"][0], got["hd95"][0]) == (dice, dice, hd95)


def test_any_value_but_zero_is_foreground_with_one_class():
    truth = blobs(3, 1)
    assert (per_image(truth, truth * 255, 1)["dice"] == 1).all()


def test_several_classes_are_averaged_over_those_present():
    prediction, truth = blobs(6, 3, classes=3), blobs(6, 4, classes=3)
    prediction[0] = truth[0] = 0
    truth[1][truth[1] == 2] = 0
    prediction[1][prediction[1] == 2] = 0
    prediction[2][prediction[2] == 3] = 0
    got = per_image(prediction, truth, 3)
    for i, (p, t) in enumerate(zip(prediction, truth, strict=True)):
        present = [c for c in (1, 2, 3) if (p == c).any() or (t == c).any()]
        wanted = np.mean([naive(p == c, t == c) for c in present], axis=0) if present else (1, 1, 0)
        np.testing.assert_allclose([got[name][i] for name in ("dice", "iou", "hd95")], wanted, atol=1e-9)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_figures_equal_monais():
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

    prediction, truth = blobs(6, 1), blobs(6, 2)
    prediction[0] = 0
    prediction[1] = truth[1] = 0
    both = np.arange(2, 6)
    got = per_image(prediction, truth, 1)
    p, t = (torch.from_numpy(x)[:, None].float() for x in (prediction, truth))
    np.testing.assert_allclose(got["dice"], compute_dice(p, t, ignore_empty=False)[:, 0], atol=1e-6)
    np.testing.assert_allclose(got["iou"], compute_iou(p, t, ignore_empty=False)[:, 0], atol=1e-6)
    hd95 = compute_hausdorff_distance(p[both], t[both], include_background=True, percentile=95)
    np.testing.assert_allclose(got["hd95"][both], hd95[:, 0], atol=1e-4)


def test_without_distances_there_is_no_hd95():
    assert set(per_image(blobs(2, 1), blobs(2, 2), 1, distances=False)) == {"dice", "iou"}


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        per_image(blobs(2, 1), blobs(3, 1), 1)


def test_mean_is_over_pictures_and_says_how_many():
    figures = {"dice": np.array([1.0, 0.0, 0.5]), "hd95": np.array([0.0, 2.0, 4.0])}
    assert mean(figures) == {"dice": 0.5, "hd95": 2.0, "n": 3}
    assert mean({}) == mean({"dice": np.zeros(0)}) == {"n": 0}


def test_scores_over_batches_are_those_of_all_pictures_at_once():
    prediction, truth = blobs(5, 1), blobs(5, 2)
    scores = Scores(1)
    for part in (slice(0, 1), slice(1, 1), slice(1, 5)):
        scores.add(prediction[part], truth[part])
    assert scores.mean() == mean(per_image(prediction, truth, 1))
    assert Scores(1).mean() == {"n": 0}


def test_scores_take_pictures_of_different_sizes():
    scores = Scores(1, distances=False)
    scores.add(np.ones((1, 4, 6)), np.ones((1, 4, 6)))
    scores.add(np.ones((1, 9, 3)), np.zeros((1, 9, 3)))
    assert scores.mean() == {"dice": 0.5, "iou": 0.5, "n": 2}


def test_logits_become_classes():
    assert to_classes(np.array([[[[-1.0, 0.0, 2.0]]]])).tolist() == [[[0, 0, 1]]]
    several = np.array([[[0.0, 3.0]], [[1.0, 1.0]], [[2.0, -1.0]]])
    assert to_classes(several).tolist() == [[2, 0]]
    assert to_classes(several).dtype == np.uint8


def test_each_class_has_its_own_dice_over_the_pictures_that_have_it():
    truth = np.zeros((3, 8, 8), np.uint8)
    truth[0, :2], truth[1, :2], truth[1, 4:6] = 1, 1, 2
    prediction = truth.copy()
    prediction[1, :1] = 0  # half of class 1
    prediction[2, 0, 0] = 1  # where there is none
    got = per_image(prediction, truth, 3)
    np.testing.assert_allclose(got["dice_1"], [1, 2 / 3, 0])
    np.testing.assert_allclose(got["dice_2"], [np.nan, 1, np.nan])
    figures = mean(got)
    assert figures["dice_1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert figures["dice_2"] == 1
    assert "dice_3" not in figures  # nobody has it
    assert set(per_image(truth, truth, 1)) == {"dice", "iou", "hd95"}
