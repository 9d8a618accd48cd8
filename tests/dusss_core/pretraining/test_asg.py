"""ASG: zones and labels of a batch, values by hand, limit cases, gradients."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from dusss_core.config import TextConfig, ZonesConfig
from dusss_core.pretraining import asg
from dusss_core.pretraining.alignment import TEMPERATURE
from dusss_core.pretraining.asg import (
    LABELS,
    label_loss,
    relation_loss,
    relations,
    zone_loss,
    zone_weights,
)
from dusss_core.text.bank import build_text_bank
from dusss_core.text.zones import ZONES
from tests.dusss_core.conftest import SENTENCES, make_split
from tests.dusss_core.gradients import assert_same_as_reference
from tests.dusss_core.pretraining.batches import look, trainer_of


@pytest.fixture(scope="module")
def words():
    """Features of the tiny world's sentences by the true encoder: their tokens have places in the text."""
    return build_text_bank(SENTENCES, TextConfig())


def units(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_labels_and_words_of_a_mirrored_picture_are_those_of_the_mirrored_zones(words):
    seen = look(trainer_of("asg", words))
    left, right = ([ZONES.index(zone) for zone in ZONES if zone[1] == side] for side in ("left", "right"))
    named = seen.own.labels[:, : len(ZONES)].bool()
    assert torch.equal(seen.own.parts.any(dim=2), named)
    # `identity` tells which of the two sentences it is, as the picture was shown; half of the pictures are mirrored
    says_left = seen.identity == words.identity(torch.tensor([0])).item()
    assert says_left.any() and not says_left.all() and not torch.equal(says_left, seen.sentence == 0)
    for record, is_left in enumerate(says_left.tolist()):
        assert named[record].nonzero().flatten().tolist() == (left if is_left else right)
    # "left" and "lung" of [CLS] infected area in the left lung . [SEP]
    assert seen.own.parts[0, named[0]][0].nonzero().flatten().tolist() == [5, 6]


def test_zones_are_where_the_study_says():
    weights = zone_weights((10, 4), ZonesConfig(upper_until=0.4, lower_from=0.6))
    assert torch.allclose(weights.sum(dim=(1, 2)), torch.ones(6))
    upper_left = torch.zeros(10, 4)
    upper_left[:4, :2] = 1 / 8
    assert torch.allclose(weights[ZONES.index(("upper", "left"))], upper_left, atol=1e-6)
    other = zone_weights((10, 4), ZonesConfig(left="right", upper_until=0.4, lower_from=0.6))
    assert torch.allclose(other[ZONES.index(("upper", "left"))], upper_left.flip(1), atol=1e-6)
    # a mirrored picture has its zones on the other half
    assert torch.allclose(weights.flip(2), other, atol=1e-6)
    with pytest.raises(ValueError, match="is not above lower_from"):
        ZonesConfig(upper_until=0.7, lower_from=0.6)


def test_words_that_fit_all_zones_alike_cost_what_cannot_be_told():
    zones, one = units(1, 1, 8).expand(3, 6, 8), units(1, 1, 8, seed=1).expand(3, 6, 8)
    parts = torch.zeros(3, 6, 5, dtype=torch.bool)
    parts[0, 0, 1] = parts[0, 3, 2] = True  # two zones by two words; a third picture names none
    parts[1, 2, 1] = True
    expected = ((math.log(6) + math.log(2)) / 2 + math.log(6) / 2) / 2
    assert zone_loss(zones, one, parts).item() == pytest.approx(expected, rel=1e-5)
    assert zone_loss(zones, one, torch.zeros_like(parts)).item() == 0


def test_zones_that_fit_their_own_words_cost_nothing_but_which_of_those_by_the_same_words():
    parts = torch.zeros(1, 6, 4, dtype=torch.bool)
    parts[0, 0, 1] = parts[0, 2, 1] = parts[0, 1, 2] = True
    zones = torch.eye(6)[None]
    assert zone_loss(zones, zones, parts).item() == pytest.approx(0, abs=1e-4)
    words = zones.clone()
    words[0, [0, 2], 0] = words[0, [0, 2], 2] = 0.5**0.5
    words[0, 0, 1] = words[0, 2, 1] = 0
    assert zone_loss(zones, words, parts).item() == pytest.approx(2 / 3 * math.log(2), abs=1e-3)
    # words of zones that the sentence does not name count nowhere
    other = words.clone()
    other[0, 3:] = units(3, 6)
    assert torch.equal(zone_loss(zones, words, parts), zone_loss(zones, other, parts))


def test_labels_cost_ln_2_where_nothing_is_known():
    assert label_loss(torch.zeros(3, len(LABELS)), torch.ones(3, len(LABELS))).item() == pytest.approx(math.log(2))


def test_similarities_equal_to_their_target_cost_nothing():
    labels = torch.tensor([[1.0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]])
    target = relations(labels, torch.tensor([1, 1, 2, 3]))
    assert torch.allclose(target.sum(dim=1), torch.ones(4))
    assert relation_loss(TEMPERATURE * target.log() + 0.3, target).item() == pytest.approx(0, abs=1e-6)
    assert relation_loss(torch.zeros(4, 4), target) > 0.1
    # the same sentence twice, half each; the third has nothing in common with them, the fourth no label at all
    assert target[0].tolist() == pytest.approx([0.5, 0.5, 0, 0], abs=2e-4)
    assert target[2].tolist() == pytest.approx([0, 0, 1, 0], abs=4e-4)
    assert target[3].tolist() == pytest.approx([0, 0, 0, 1], abs=4e-4)


def test_without_zones_labels_and_relations_it_is_the_contrast_of_clip_at_a_fixed_temperature(bank, monkeypatch):
    for name in ("WEIGHT_ZONES", "WEIGHT_LABELS", "WEIGHT_RELATIONS"):
        monkeypatch.setattr(asg, name, 0.0)
    trainer, clip = trainer_of("asg", bank), trainer_of("dusss", bank, preset="clip")
    clip.vlm.log_scale.data.fill_(-math.log(TEMPERATURE))
    own, plain = (sum(one.method.contrasts(look(one)).values()).item() for one in (trainer, clip))
    assert own == pytest.approx(2 * plain, rel=1e-5)


def test_a_batch_in_which_no_sentence_names_a_zone_has_a_finite_loss(words):
    split = dataclasses.replace(make_split(), sentences=("evenly distributed.", "sparsely distributed."))
    trainer = trainer_of("asg", words, split)
    parts = trainer.method.contrasts(look(trainer))
    sum(parts.values()).backward()
    assert parts["zones"].item() == 0 and math.isfinite(sum(parts.values()).item())
    assert all(bool(p.grad.isfinite().all()) for p in trainer.model.parameters() if p.grad is not None)


def test_gradients_are_those_of_the_plain_formula():
    parts = torch.zeros(2, 6, 4, dtype=torch.bool)
    parts[0, 0, 1] = parts[0, 2, 1] = parts[0, 5, 2] = parts[1, 3, 0] = True

    own = torch.tensor

    def plain(zones, words):
        costs = []
        for record in (0, 1):
            named = [z for z in range(6) if parts[record, z].any()]
            rows = []
            for z in named:
                to_words = F.cross_entropy(zones[record, z] @ words[record, named].T / TEMPERATURE, own(named.index(z)))
                to_zones = F.cross_entropy(words[record, z] @ zones[record].T / TEMPERATURE, own(z))
                rows.append((to_words + to_zones) / 2)
            costs.append(torch.stack(rows).mean())
        return torch.stack(costs).mean()

    zones, words = units(2, 6, 4), units(2, 6, 4, seed=1)
    assert_same_as_reference(lambda a, b: zone_loss(a, b, parts), plain, zones, words)
    target = relations(torch.rand(4, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 2, 1, 3]))

    def kl(similarity):
        p, t = (similarity / TEMPERATURE).softmax(1), target.to(similarity.dtype)
        return ((p * (p / t).log()).sum(1) + (t * (t / p).log()).sum(1)).mean() / 2

    assert_same_as_reference(lambda s: relation_loss(s, target.to(s.dtype)), kl, units(4, 4))
