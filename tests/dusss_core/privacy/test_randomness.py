"""Secret random numbers have the distributions that the accounting takes for granted."""

from __future__ import annotations

import os

import numpy as np
import pytest
from scipy import stats

from dusss_core.privacy.randomness import Randomness

NEVER = 1e-7


def test_normals_are_normal_and_do_not_depend_on_each_other():
    values = Randomness().normals(100_001)
    assert len(values) == 100_001
    assert stats.kstest(values, "norm").pvalue > NEVER
    assert abs(stats.kurtosis(values)) < 0.1
    for lag in (1, 2, 1 << 14):  # the two halves of a chunk share their logarithms
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 0.025
        assert abs(np.corrcoef(values[:-lag] ** 2, values[lag:] ** 2)[0, 1]) < 0.025


def test_uniforms_have_53_bits_and_never_reach_one():
    values = Randomness().uniforms(100_000)
    assert stats.kstest(values, "uniform").pvalue > NEVER
    assert values.min() >= 0
    assert values.max() < 1
    assert (values * 2.0**53 % 2 == 1).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_a_draw_takes_each_record_with_its_rate(rate):
    randomness = Randomness()
    drawn = np.array([randomness.poisson_draw(50, rate) for _ in range(2000)])
    assert stats.binomtest(int(drawn.sum()), drawn.size, rate).pvalue > NEVER
    if rate < 1:  # the number that is drawn varies as it must: a draw of fixed size is another mechanism
        assert drawn.sum(1).var() == pytest.approx(50 * rate * (1 - rate), rel=0.3)


def test_nobody_is_drawn_at_a_rate_of_nearly_nothing():
    assert not Randomness().poisson_draw(100_000, 1e-15).any()


def test_groups_are_equally_likely():
    counts = np.bincount(Randomness().groups(60_000, 6), minlength=6)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > NEVER


def test_streams_differ():
    assert not (Randomness().uniforms(100) == Randomness().uniforms(100)).any()
    randomness = Randomness()
    assert randomness.generator().initial_seed() != randomness.generator().initial_seed()


def test_a_forked_process_has_a_stream_of_its_own(monkeypatch):
    randomness, copy = Randomness(), Randomness()
    copy._cipher = randomness._cipher
    monkeypatch.setattr(os, "getpid", lambda: -1)
    copy.uniforms(1)
    assert copy._cipher is not randomness._cipher
