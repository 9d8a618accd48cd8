import math

import pytest
import torch

from dusss_core.config import UncertaintyConfig
from dusss_core.losses import (
    Embedding,
    Gaussian,
    cross_modal_loss,
    info_nce,
    intra_modal_loss,
    masked_pool,
    same_sentence,
    supervised_similarity,
    temperature_scale,
    text_guided_loss,
)
from tests.dusss_core.gradients import assert_same_as_reference

ALL_PAIRS = ["multi_positive", "masked", "identity"]
each_pairs = pytest.mark.parametrize("pairs", ALL_PAIRS)
LOG_SCALE = torch.tensor(math.log(7.0))


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def positives_of(*sentences: int) -> torch.Tensor:
    index = torch.tensor(sentences)
    return same_sentence(index, index)


def without_text(positives: torch.Tensor, *records: int) -> torch.Tensor:
    positives = positives.clone()
    for record in records:
        positives[record, :] = positives[:, record] = False
    return positives


BATCHES = {
    "all different": positives_of(0, 1, 2, 3),
    "some the same": positives_of(0, 1, 0, 0, 1),
    "all the same": positives_of(4, 4, 4),
    "one record": positives_of(0),
    "one without text": without_text(positives_of(0, 1, -1, 0), 2),
    "none with text": without_text(positives_of(-1, -1), 0, 1),
}
each_batch = pytest.mark.parametrize("positives", BATCHES.values(), ids=BATCHES)


def naive_info_nce(similarity, positives, scale, pairs, skip=()):
    losses = []
    for i in range(len(similarity)):
        mine = [j for j in range(similarity.shape[1]) if positives[i, j]]
        targets = mine if pairs == "multi_positive" else [j for j in mine if j == i]
        if not targets:
            continue
        others = [
            j for j in range(similarity.shape[1]) if j not in skip and not (pairs == "masked" and j in mine and j != i)
        ]
        total = sum(torch.exp(scale * similarity[i, j]) for j in others)
        losses.append(sum(torch.log(total) - scale * similarity[i, j] for j in targets) / len(targets))
    return sum(losses) / len(losses) if losses else similarity.sum() * 0


def naive_cross_modal(similarity, log_scale, positives, pairs):
    skip = [i for i in range(len(positives)) if not positives[i, i]]
    both = (
        naive_info_nce(s, p, log_scale.exp(), pairs, skip)
        for s, p in ((similarity, positives), (similarity.T, positives.T))
    )
    return sum(both) / 2


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 1, 0], [0, 1, 0], [[1, 0, 1], [0, 1, 0], [1, 0, 1]]),
        ([-1, -1, 2], [-1, -1, 2], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ([3, -1], [1, 2, 3], [[1, 0, 1], [0, 1, 0]]),
    ],
)
def test_same_sentence(a, b, expected):
    assert same_sentence(torch.tensor(a), torch.tensor(b)).int().tolist() == expected


@each_batch
@each_pairs
def test_info_nce_is_the_naive_one(positives, pairs):
    assert_same_as_reference(
        lambda s, t: info_nce(s, positives, t, pairs),
        lambda s, t: naive_info_nce(s, positives, t, pairs),
        random(*positives.shape),
        torch.tensor(7.0),
    )


@each_batch
@each_pairs
def test_cross_modal_loss_is_the_naive_one_in_both_directions(positives, pairs):
    assert_same_as_reference(
        lambda s, t: cross_modal_loss(s, positives, t, pairs),
        lambda s, t: naive_cross_modal(s, t, positives, pairs),
        random(*positives.shape),
        LOG_SCALE,
    )


@each_batch
@each_pairs
def test_intra_modal_loss_is_the_naive_one(positives, pairs):
    images = positives | torch.eye(len(positives), dtype=torch.bool)

    def naive(s_image, s_text, log_scale):
        of_images = naive_info_nce(s_image, images, log_scale.exp(), "identity" if pairs == "identity" else "masked")
        return (of_images + naive_info_nce(s_text, positives, log_scale.exp(), pairs)) / 2

    assert_same_as_reference(
        lambda i, t, scale: intra_modal_loss(i, t, images, positives, scale, pairs),
        naive,
        random(*positives.shape),
        random(*positives.shape, seed=2),
        LOG_SCALE,
    )


@each_pairs
def test_intra_modal_loss_of_a_batch_without_any_text(pairs):
    similarity, empty = random(2, 2).requires_grad_(), torch.zeros(0, 0, dtype=torch.bool)
    loss = intra_modal_loss(similarity, torch.zeros(0, 0), positives_of(-1, -1), empty, LOG_SCALE, pairs)
    loss.backward()
    assert loss > 0 and similarity.grad.isfinite().all()


@each_pairs
def test_records_without_text_take_no_part_across_modalities(pairs):
    whole = random(4, 4).requires_grad_()
    keep = torch.tensor([0, 1, 3])
    loss = cross_modal_loss(whole, BATCHES["one without text"], LOG_SCALE, pairs)
    alone = cross_modal_loss(whole.detach()[keep][:, keep], positives_of(0, 1, 0), LOG_SCALE, pairs)
    torch.testing.assert_close(loss, alone)
    loss.backward()
    assert not whole.grad[2].any() and not whole.grad[:, 2].any() and whole.grad[0].any()


def test_what_becomes_of_pairs_with_the_same_sentence():
    """Making a same-sentence pair more similar helps, does nothing, or hurts."""
    slope = {}
    for pairs in ALL_PAIRS:
        similarity = torch.zeros(3, 3, requires_grad=True)
        info_nce(similarity, positives_of(0, 0, 1), 5.0, pairs).backward()
        slope[pairs] = float(similarity.grad[0, 1])
    assert slope["multi_positive"] < 0 == slope["masked"] < slope["identity"]


def test_with_several_positives_the_hardest_is_pulled_most():
    similarity = torch.tensor([[0.9, 0.1, 0.0]], requires_grad=True)
    info_nce(similarity, torch.tensor([[True, True, False]]), 10.0, "multi_positive").backward()
    assert similarity.grad[0, 1] < 0 and similarity.grad[0, 1] < similarity.grad[0, 0]


def test_texts_may_outnumber_pictures_with_multi_positive_only():
    positives = same_sentence(torch.tensor([2, 0]), torch.arange(5)) & ~torch.eye(2, 5, dtype=torch.bool)
    assert positives.sum() == 2
    assert_same_as_reference(
        lambda s: info_nce(s, positives, 3.0, "multi_positive"),
        lambda s: naive_info_nce(s, positives, 3.0, "multi_positive"),
        random(2, 5),
    )
    for pairs in ("masked", "identity"):
        with pytest.raises(ValueError, match="aligned"):
            info_nce(random(2, 5), positives, 3.0, pairs)


def test_temperature_scale_is_bounded_but_can_come_back():
    beyond = torch.tensor(9.0, requires_grad=True)
    scale = temperature_scale(beyond)
    scale.backward()
    assert float(scale.detach()) == pytest.approx(100.0, rel=1e-5) and beyond.grad > 0
    assert float(temperature_scale(torch.tensor(1.5))) == pytest.approx(math.exp(1.5))


def test_the_largest_scale_stays_finite():
    similarity = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], requires_grad=True)
    loss = cross_modal_loss(similarity, positives_of(0, 1), torch.tensor(50.0), "identity")
    loss.backward()
    assert float(loss.detach()) == pytest.approx(200.0, rel=1e-4) and similarity.grad.isfinite().all()


@each_pairs
@pytest.mark.parametrize("detach", [False, True])
def test_gradients_from_the_loss_to_the_embeddings_are_finite_at_duplicates(pairs, detach):
    """A batch of one sentence and one picture, with offset 0: every distance of Eq. 3 is 0."""
    config = UncertaintyConfig(offset=0.0)
    tensors = [random(1, 6, seed=s).repeat(3, 1).requires_grad_() for s in (1, 2, 3)]
    e = Embedding(tensors[0], Gaussian(tensors[1], tensors[2]))
    for positives in (positives_of(0, 0, 0), positives_of(0, 1, 2)):
        similarity, _ = supervised_similarity(e, e, config, sss=True, detach_uncertainty=detach)
        loss = cross_modal_loss(similarity, positives, LOG_SCALE, pairs)
        loss.backward()
        assert loss.isfinite()
    assert all(t.grad is None or t.grad.isfinite().all() for t in tensors)
    assert tensors[0].grad.isfinite().all()


def naive_pool(features, weights):
    out = []
    for f, w in zip(features, weights, strict=True):
        total = w.sum()
        mean = sum(f[:, y, x] * w[0, y, x] for y in range(w.shape[1]) for x in range(w.shape[2]))
        out.append(mean / total if total > 1e-6 else mean * 1e6)
    return torch.stack(out)


@pytest.mark.parametrize("empty", [[], [1], [0, 1, 2]])
def test_masked_pool_is_the_naive_one_also_under_empty_masks(empty):
    weights = random(3, 1, 4, 5).abs()
    weights[empty] = 0
    assert_same_as_reference(masked_pool, naive_pool, random(3, 6, 4, 5, seed=2), weights)
    pooled = masked_pool(random(3, 6, 4, 5, seed=2), weights)
    assert not pooled[empty].any()


def naive_text_guided(pooled, texts, log_scale, positives, pairs):
    rows = [[p @ t / (p.norm() * t.norm()) if p.any() else (p * t).sum() * 0 for t in texts] for p in pooled]
    similarity = torch.stack([torch.stack(row) for row in rows])
    to_text = naive_info_nce(similarity, positives, log_scale.exp(), pairs)
    return (to_text + naive_info_nce(similarity.T, positives.T, log_scale.exp(), pairs)) / 2


@pytest.mark.parametrize("name", ["all different", "some the same", "all the same", "one record"])
@each_pairs
def test_text_guided_loss_is_the_naive_one(name, pairs):
    positives = BATCHES[name]
    assert_same_as_reference(
        lambda p, t, scale: text_guided_loss(p, t, positives, scale, pairs),
        lambda p, t, scale: naive_text_guided(p, t, scale, positives, pairs),
        random(len(positives), 6),
        random(len(positives), 6, seed=2),
        LOG_SCALE,
    )


@pytest.mark.parametrize("level", [-3.0, -15.0, -30.0, -60.0, -200.0])
def test_gradient_through_a_vanishing_mask_is_bounded(level):
    """Down to masks that are 0 in float32; the naive weighted mean is 0 / 0 there."""
    logits = (random(3, 1, 4, 4, seed=4) * 0.1 + level).requires_grad_()
    pooled = masked_pool(random(3, 6, 4, 4), logits.sigmoid())
    loss = text_guided_loss(pooled, random(3, 6, seed=2), positives_of(0, 1, 2), LOG_SCALE, "multi_positive")
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and logits.grad.abs().max() < 5


def test_autocast_changes_nothing():
    positives = BATCHES["some the same"]
    similarity, features, weights = random(5, 5), random(5, 6, 4, 4), random(5, 1, 4, 4).abs()

    def losses():
        pooled = masked_pool(features, weights)
        return (
            pooled,
            cross_modal_loss(similarity, positives, LOG_SCALE, "multi_positive"),
            intra_modal_loss(similarity, similarity.T, positives, positives, LOG_SCALE, "masked"),
            text_guided_loss(pooled, features[:, :, 0, 0], positives, LOG_SCALE, "identity"),
        )

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = losses()
    for got, wanted in zip(inside, losses(), strict=True):
        assert got.dtype == torch.float32 and torch.equal(got, wanted)


def test_bfloat16_features_are_pooled_in_float32():
    features, weights = torch.ones(1, 2, 64, 64).bfloat16(), torch.full((1, 1, 64, 64), 0.3).bfloat16()
    pooled = masked_pool(features, weights)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, torch.ones(1, 2))
