"""CMITM: how much is covered, values by hand, limit cases, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from dusss_core.pretraining import cmitm
from dusss_core.pretraining.alignment import TEMPERATURE
from dusss_core.pretraining.cmitm import covered_squares, covered_words, of_pixels, pixel_loss, word_loss
from tests.dusss_core.gradients import assert_same_as_reference
from tests.dusss_core.pretraining.batches import look, trainer_of


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("size", "squares", "kept"), [(112, 49, 12), (224, 196, 49)])
def test_a_quarter_of_the_squares_is_kept_in_every_picture_and_they_are_others_in_each(size, squares, kept):
    covered = covered_squares(8, size, size, draw())
    assert covered[0].numel() == squares
    assert (~covered).flatten(1).sum(dim=1).tolist() == [kept] * 8
    assert len({tuple(one.flatten().tolist()) for one in covered}) == 8
    over = of_pixels(covered, torch.Size((size, size)))
    assert over.shape == (8, 1, size, size) and over.sum() == covered.sum() * 16**2
    assert over[0, 0, :16, :16].unique().tolist() == [covered[0, 0, 0].item()]


def test_half_of_the_words_are_covered_and_never_padding():
    real = torch.arange(9)[None] < torch.tensor([[8], [5], [1], [9]])
    covered = covered_words(real, draw())
    assert covered.sum(dim=1).tolist() == [4, 2, 1, 4]
    assert not (covered & ~real).any()


def test_what_is_not_covered_costs_nothing_and_what_is_costs_its_error():
    picture, covered = torch.rand(2, 1, 32, 32, generator=draw()), torch.zeros(2, 2, 2, dtype=torch.bool)
    rebuilt = torch.randn(2, 1, 32, 32, generator=draw(1), requires_grad=True)
    assert pixel_loss(rebuilt, picture, covered).item() == 0
    covered[0, 0, 1] = True
    pixel_loss(rebuilt, picture, covered).backward()
    inside = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    inside[0, 0, :16, 16:] = True
    assert (rebuilt.grad[inside] != 0).all() and not rebuilt.grad[~inside].any()
    # half of the square at 0, half at 1: mean 0 and variance 1 are -1 and 1
    halves = torch.zeros(2, 1, 32, 32)
    halves[..., ::2, :] = 1
    assert pixel_loss(torch.zeros(2, 1, 32, 32), halves, covered).item() == pytest.approx(1, abs=1e-4)
    assert pixel_loss(2 * halves - 1, halves, covered).item() == pytest.approx(0, abs=1e-4)


def test_a_word_that_is_found_costs_nothing_and_its_opposite_2():
    tokens, words = torch.randn(2, 3, 5, generator=draw()), torch.tensor([[True, False, False], [False, True, False]])
    assert word_loss(3 * tokens, tokens, words).item() == pytest.approx(0, abs=1e-6)
    assert word_loss(-tokens, tokens, words).item() == pytest.approx(2, abs=1e-6)
    other = torch.where(words[..., None], tokens, torch.randn(2, 3, 5, generator=draw(2)))
    assert word_loss(other, tokens, words).item() == pytest.approx(0, abs=1e-6)


def test_with_nothing_covered_and_nothing_rebuilt_it_is_the_contrast_of_clip_at_a_fixed_temperature(bank, monkeypatch):
    for name, value in (("KEPT", 1.0), ("WEIGHT_PIXEL", 0.0), ("WEIGHT_WORD", 0.0)):
        monkeypatch.setattr(cmitm, name, value)
    trainer, clip = trainer_of("cmitm", bank), trainer_of("dusss", bank, preset="clip")
    clip.vlm.log_scale.data.fill_(-math.log(TEMPERATURE))
    own, plain = (sum(one.method.contrasts(look(one)).values()).item() for one in (trainer, clip))
    assert own == pytest.approx(2 * plain, rel=1e-5)
    monkeypatch.setattr(cmitm, "KEPT", 0.25)
    assert sum(trainer.method.contrasts(look(trainer)).values()).item() != pytest.approx(own, rel=1e-3)


def test_words_that_are_covered_are_not_seen(bank):
    decoders = trainer_of("cmitm", bank).vlm.pretraining.eval()
    tokens, real = torch.randn(1, 6, 384, generator=draw()), torch.ones(1, 6, dtype=torch.bool)
    words, patches = (
        torch.tensor([[False, True, True, False, False, False]]),
        torch.randn(1, 64, 4, 4, generator=draw()),
    )
    patches = patches[:, : decoders.picture.in_features]
    changed = tokens.clone()
    changed[0, 1:3] += 1
    assert torch.equal(decoders.found(tokens, words, real, patches), decoders.found(changed, words, real, patches))
    changed[0, 0] += 1
    assert not torch.equal(decoders.found(tokens, words, real, patches), decoders.found(changed, words, real, patches))


def test_masked_pictures_leave_running_statistics_as_whole_ones_made_them(bank):
    trainer, clip = trainer_of("cmitm", bank), trainer_of("dusss", bank, preset="clip")
    for one in (trainer, clip):
        look(one)
    statistics = {key: value for key, value in clip.vlm.named_buffers() if "running" in key or "tracked" in key}
    assert statistics
    # the strong view comes after, and is drawn otherwise: what is compared is how many batches were followed
    own = dict(trainer.vlm.named_buffers())
    assert {key for key in statistics if "tracked" in key and own[key] != statistics[key]} == set()
    assert all(layer.track_running_stats for layer in trainer.vlm.modules() if hasattr(layer, "track_running_stats"))


def test_gradients_are_those_of_the_plain_formula():
    picture, covered = torch.rand(1, 2, 32, 32, generator=draw()), torch.tensor([[[True, False], [False, True]]])

    def plain(rebuilt):
        costs = []
        for rows, columns in ((slice(0, 16), slice(0, 16)), (slice(16, 32), slice(16, 32))):
            for channel in (0, 1):
                wanted = picture[0, channel, rows, columns].to(rebuilt.dtype)
                wanted = (wanted - wanted.mean()) / (wanted.var(correction=0) + 1e-6).sqrt()
                costs.append((rebuilt[0, channel, rows, columns] - wanted).abs().mean())
        return torch.stack(costs).mean()

    start = torch.randn(1, 2, 32, 32, generator=draw(3))
    assert_same_as_reference(lambda x: pixel_loss(x, picture.to(x.dtype), covered), plain, start)
    tokens, words = torch.randn(2, 3, 4, generator=draw()), torch.tensor([[True, True, False], [False, True, False]])
    assert_same_as_reference(
        lambda x: word_loss(x, tokens.to(x.dtype), words),
        lambda x: (1 - F.cosine_similarity(x, tokens.to(x.dtype), dim=-1))[words].mean(),
        torch.randn(2, 3, 4, generator=draw(1)),
    )
