"""The distances of step 1 can learn how many sentences fit, and nothing else learns from that."""

from __future__ import annotations

import math

import pytest
import torch

from dusss_core.build import build_vlm
from dusss_core.losses.ambiguity import ambiguity, ambiguity_loss
from tests.dusss_core.conftest import make_config
from tests.dusss_core.gradients import assert_same_as_reference


def naive(similarity, scale, power, weights):
    p = [[w * math.exp(s * scale) for s, w in zip(row, weights, strict=True)] for row in similarity.tolist()]
    p = [[x / sum(row) for x in row] for row in p]
    fitting = [math.exp(-sum(x * math.log(x) for x in row)) for row in p]
    shares = list(zip(*p, strict=True))
    of_sentence = [sum(x * n for x, n in zip(row, fitting, strict=True)) / sum(row) for row in shares]
    a, b = sum(fitting) / len(fitting), sum(of_sentence) / len(of_sentence)
    return torch.tensor([[((n / a + m / b) / 2) ** power for m in of_sentence] for n in fitting])


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_ambiguity_is_the_naive_perplexity_of_picture_and_sentence(power):
    similarity = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weights = [1.0, 2, 3, 4, 5]
    got = ambiguity(similarity, 3.0, power, log_weights=torch.tensor(weights).log())
    torch.testing.assert_close(got, naive(similarity, 3.0, power, weights))
    torch.testing.assert_close(ambiguity(similarity, 3.0, power), naive(similarity, 3.0, power, [1.0] * 5))


def test_a_sentence_that_fits_no_picture_has_its_mean_of_them_too():
    """Its probabilities are far below what single precision adds to a clamp."""
    similarity = torch.tensor([[0.9, 0.8, -0.4], [0.7, 0.9, -0.6]])
    torch.testing.assert_close(ambiguity(similarity, 50.0, 1.0), naive(similarity, 50.0, 1.0, [1.0] * 3))


def test_a_picture_that_many_sentences_fit_is_more_ambiguous():
    sharp, vague = torch.tensor([[1.0, -1, -1, -1]]), torch.zeros(1, 4)
    target = ambiguity(torch.cat([sharp, vague]), 10.0, 3.0)
    assert (target[1] > 2 * target[0]).all()


def test_columns_that_take_no_part_change_nothing():
    similarity = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    columns = torch.tensor([True, True, False, True])
    target = ambiguity(similarity, 5.0, 2.0, columns=columns)
    alone = ambiguity(similarity[:, columns], 5.0, 2.0)
    torch.testing.assert_close(target[:, columns], alone)
    distance = torch.rand(3, 4) + 0.1
    torch.testing.assert_close(ambiguity_loss(distance, target, columns), ambiguity_loss(distance[:, columns], alone))


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 5)])
def test_one_picture_or_one_sentence_is_as_ambiguous_as_the_rest(shape):
    torch.testing.assert_close(ambiguity(torch.zeros(shape), 5.0, 3.0), torch.ones(shape))


def test_the_loss_is_least_where_the_distance_is_the_ambiguity_and_finite_at_none():
    target = torch.tensor([[0.3, 1.0, 4.0]])
    at_best = ambiguity_loss(target - 1e-3, target)
    for factor in (0.8, 1.25):
        assert ambiguity_loss(target * factor, target) > at_best
    distance = torch.zeros(1, 3, requires_grad=True)
    ambiguity_loss(distance, target).backward()
    assert distance.grad.isfinite().all() and (distance.grad < 0).all()


def test_the_gradient_is_that_of_float64():
    distance = torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) + 0.1

    def reference(w):
        target = torch.ones_like(w) * 2
        return ((w + 1e-3).log() + target / (w + 1e-3)).mean()

    assert_same_as_reference(lambda w: ambiguity_loss(w, torch.full_like(w, 2.0)), reference, distance)


@pytest.mark.parametrize("cells", [0, 3])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_gaussians_that_learn_ambiguity_teach_nothing_else(cells, weight):
    vlm = {**make_config().vlm.model_dump(), "cells": cells}
    model = build_vlm(make_config(vlm=vlm, pretrain={"uncertainty": {"weight_ambiguity": weight}}))
    image = model.encode_image(torch.rand(2, 1, 32, 32)).embedding
    text = model.encode_text(torch.rand(2, 4, 384), torch.ones(2, 4, dtype=torch.bool)).embedding
    sum(part.square().sum() for each in (image, text) for part in each.gaussian).backward()
    taught = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    heads = {name for name in taught if name.rpartition(".")[0].endswith(("mu", "log_sigma"))}
    assert len(heads) == 8 and (taught == heads) == (weight > 0)
