"""The noise of a step is the noise that was paid for, also when nobody was drawn, and nobody can repeat it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy import stats

from dusss_core.privacy.randomness import Randomness
from dusss_core.privacy.segment import PrivateSegmenter
from tests.dusss_core.conftest import make_split
from tests.dusss_core.privacy.conftest import private_config, segmenter

NEVER = 1e-7
"""A right program fails a test at this level once in ten million runs."""
SIGMA, CLIP, RECORDS, RATE = 1.3, 0.7, 100, 1e-12


def updates(kind=PrivateSegmenter, steps=1, **privacy):
    """What empty draws change in the weights at a learning rate of 1, over the noise's standard deviation."""
    constant = {"lr": 1.0, "min_lr_ratio": 1, "warmup": 0, "weight_decay": 0}
    config = private_config(
        privacy={"noise_multiplier": SIGMA, "clip": CLIP, "sample_rate": RATE, "steps_per_round": steps, **privacy},
        segment={"optimizer": constant},
    )
    trainer = segmenter(config, make_split(), kind=kind, records=RECORDS)
    trainer.optimizer = torch.optim.SGD(trainer.student.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten().double() for p in trainer.student.parameters()])
    figures = trainer.train_round(1)
    after = torch.cat([p.detach().flatten().double() for p in trainer.student.parameters()])
    assert figures == {"n_steps": steps}
    return (before - after).numpy() / (SIGMA * CLIP / (RATE * RECORDS) * steps**0.5)


def is_standard_normal(values):
    squares = (values**2).sum()
    chi = 2 * min(stats.chi2.cdf(squares, len(values)), stats.chi2.sf(squares, len(values)))
    return min(chi, stats.kstest(values, "norm").pvalue) > NEVER


class QuarterNoise(PrivateSegmenter):
    """Planted: a quarter of the noise."""

    def set_gradients(self, batch, *rest):
        self.config.privacy.noise_multiplier = SIGMA / 4
        return super().set_gradients(batch, *rest)


class SkipsEmptyDraws(PrivateSegmenter):
    """Planted: a step without records is none."""

    def set_gradients(self, batch, *rest):
        if batch:
            return super().set_gradients(batch, *rest)
        self.optimizer.zero_grad()
        return {}


class SomeNoise(PrivateSegmenter):
    """Planted: parameters that no record reached get none."""

    def set_gradients(self, batch, *rest):
        figures = super().set_gradients(batch, *rest)
        next(self.student.head.parameters()).grad = None
        return figures


@pytest.mark.parametrize("steps", [1, 4])
def test_an_empty_draw_is_a_step_of_the_noise_that_was_paid_for(steps):
    assert is_standard_normal(updates(steps=steps))


@pytest.mark.parametrize("kind", [QuarterNoise, SkipsEmptyDraws, SomeNoise])
def test_less_noise_is_caught(kind):
    values = updates(kind)
    assert not is_standard_normal(values) or (values == 0).any()


def test_every_weight_gets_noise():
    assert (updates() != 0).all()


def test_noise_is_added_to_the_sum_of_records_too():
    split = make_split()
    config = private_config(privacy={"noise_multiplier": 1e4, "clip": 1e-3, "sample_rate": 1.0})
    trainer = segmenter(config, split, records=len(split))
    trainer.train_round(1)
    gradient = torch.cat([p.grad.flatten() for p in trainer.student.parameters()]).double().numpy()
    assert is_standard_normal(gradient * len(split) / 10)


def test_no_seed_makes_noise_repeat():
    seen = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        seen.append(updates())
    assert not (seen[0] == seen[1]).any()
    assert abs(np.corrcoef(*seen)[0, 1]) < 6 / len(seen[0]) ** 0.5


def test_noise_moves_no_other_random_numbers():
    state = torch.random.get_rng_state()
    Randomness().noise_like([torch.zeros(3)], 1.0)
    assert torch.equal(state, torch.random.get_rng_state())
