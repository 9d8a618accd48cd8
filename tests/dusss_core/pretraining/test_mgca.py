"""MGCA: values by hand, limit cases, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from dusss_core.pretraining import mgca
from dusss_core.pretraining.alignment import TEMPERATURE, instance_loss
from dusss_core.pretraining.mgca import prototype_loss, sinkhorn, token_loss
from tests.dusss_core.gradients import assert_same_as_reference
from tests.dusss_core.pretraining.batches import look, trainer_of


def units(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_four_pairs_that_are_equally_near_cost_twice_ln_4():
    similarity = torch.full((4, 4), 0.3)
    assert instance_loss(similarity, torch.arange(4), "multi_positive").item() == pytest.approx(2 * math.log(4))
    # records with the same words are positives of each other: nothing more is lost than which of two it is
    near = torch.tensor([[1.0, 1, -1, -1], [1, 1, -1, -1], [-1, -1, 1, 1], [-1, -1, 1, 1]])
    same = torch.tensor([7, 7, 9, 9])
    assert instance_loss(near, same, "multi_positive").item() == pytest.approx(2 * math.log(2))


def test_without_words_and_prototypes_it_is_the_contrast_of_clip_at_a_fixed_temperature(bank, monkeypatch):
    monkeypatch.setattr(mgca, "WEIGHT_TOKEN", 0.0)
    monkeypatch.setattr(mgca, "WEIGHT_PROTOTYPE", 0.0)
    trainer, clip = trainer_of("mgca", bank), trainer_of("dusss", bank, preset="clip")
    clip.load_shared({name: value for name, value in trainer.shared().items() if not name.startswith("pretraining.")})
    clip.vlm.log_scale.data.fill_(-math.log(TEMPERATURE))
    own = sum(trainer.method.contrasts(look(trainer)).values())
    assert own.item() == pytest.approx(2 * clip.method.contrasts(look(clip))["cmc"].item(), rel=1e-5)


def test_parts_that_saw_the_same_cost_ln_of_their_number_and_padding_costs_nothing():
    own, seen = units(2, 5, 8), units(1, 1, 8, seed=1).expand(2, 5, 8)
    one = units(1, 1, 8).expand(2, 5, 8)
    assert token_loss(one, seen, None, 0.1).item() == pytest.approx(math.log(5), abs=1e-5)
    real = torch.tensor([[True, True, False, False, False], [True] * 5])
    expected = (math.log(2) + math.log(5)) / 2
    assert token_loss(one, seen, real, 0.1).item() == pytest.approx(expected, abs=1e-5)
    other = own.clone()
    other[0, 2:] = units(3, 8, seed=5)
    assert torch.equal(token_loss(own, own, real, 0.1), token_loss(other, other, real, 0.1))


def test_a_part_that_finds_its_own_costs_nothing():
    own = torch.eye(6)[None]
    assert token_loss(own, own, None, 0.01).item() == pytest.approx(0, abs=1e-6)


def test_codes_are_distributions_that_use_the_prototypes_equally():
    scores = 0.4 * torch.randn(64, 16, generator=torch.Generator().manual_seed(1)) + torch.linspace(-0.3, 0.3, 16)
    codes = sinkhorn(scores)
    assert torch.allclose(codes.sum(dim=1), torch.ones(64))
    used, plain = codes.sum(dim=0), (scores / mgca.SINKHORN_EPSILON).softmax(dim=1).sum(dim=0)
    assert used.std() < 0.5 * plain.std()
    assert torch.equal(sinkhorn(torch.zeros(5, 32)), torch.full((5, 32), 1 / 32))
    assert torch.isfinite(sinkhorn(torch.tensor([[1.0, -1.0], [1.0, -1.0]]))).all()


def test_equal_scores_with_32_prototypes_cost_ln_32():
    equal = torch.full((6, 32), 0.1)
    assert prototype_loss(equal, equal).item() == pytest.approx(math.log(32), rel=1e-6)
    # whoever disagrees with the other side pays more than whoever agrees
    sharp = 0.9 * torch.eye(4)
    assert prototype_loss(sharp, sharp) < prototype_loss(sharp, sharp.flip(0))


def test_no_gradient_goes_through_codes_and_prototypes_stand_still_at_first(bank):
    trainer = trainer_of("mgca", bank)
    prototypes = trainer.vlm.pretraining.prototypes
    for share_done, moves in ((0.0, False), (mgca.FROZEN, True)):
        prototypes.grad = None
        sum(trainer.method.contrasts(look(trainer, share_done)).values()).backward()
        assert (prototypes.grad is not None) == moves
    image, text = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    prototype_loss(image, text).backward()
    members = (image.detach() / mgca.TEMPERATURE_PROTOTYPE).softmax(dim=1)
    expected = (members - sinkhorn(text)) / mgca.TEMPERATURE_PROTOTYPE / 6
    assert torch.allclose(image.grad, expected, atol=1e-6)


def test_gradients_are_those_of_the_plain_formula():
    real = torch.tensor([[True, True, False], [True, True, True]])

    def plain(own, seen):
        costs = []
        for record, there in enumerate(real):
            scores = own[record, there] @ seen[record, there].T / 0.1
            target = torch.arange(len(scores))
            costs.append((F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2)
        return torch.stack(costs).mean()

    own, seen = units(2, 3, 4), units(2, 3, 4, seed=1)
    assert_same_as_reference(lambda a, b: token_loss(a, b, real, 0.1), plain, own, seen)

    def predicted(image, text):
        codes = [sinkhorn(scores.detach()) for scores in (text, image)]
        logits = [scores / mgca.TEMPERATURE_PROTOTYPE for scores in (image, text)]
        return (F.cross_entropy(logits[0], codes[0]) + F.cross_entropy(logits[1], codes[1])) / 2

    assert_same_as_reference(prototype_loss, predicted, units(5, 7), units(5, 7, seed=1))
