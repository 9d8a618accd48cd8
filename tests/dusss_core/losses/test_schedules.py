import json
import math

import pytest

from dusss_core.config import OptimizerConfig
from dusss_core.losses import Patience, cosine_lr, ema_alpha, sigmoid_rampup


def test_rampup_rises_from_almost_nothing_to_one_and_stays():
    values = [sigmoid_rampup(step, 10) for step in range(15)]
    assert values[0] == pytest.approx(math.exp(-5)) and values[5] == pytest.approx(math.exp(-1.25))
    assert values == sorted(values) and values[10:] == [1.0] * 5


def test_rampup_of_no_length_is_one_at_once():
    assert sigmoid_rampup(0, 0) == 1.0


def test_ema_alpha_starts_as_a_copy_and_ends_at_its_maximum():
    assert [ema_alpha(step, 0.9) for step in (0, 1, 3, 9, 1000)] == [0, 0.5, 0.75, 0.9, 0.9]


def test_learning_rate_warms_up_then_falls_to_its_floor():
    config = OptimizerConfig(lr=1.0, warmup=0.1, min_lr_ratio=0.2)
    rates = [cosine_lr(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0 and rates[99] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    middle = cosine_lr(10, 21, OptimizerConfig(lr=1.0, warmup=0, min_lr_ratio=0.2))
    assert middle == pytest.approx(0.6)


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.99])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_learning_rate_is_in_range_at_every_step_and_after_the_last(total, warmup):
    config = OptimizerConfig(lr=0.3, warmup=warmup, min_lr_ratio=0.05)
    assert all(0 < cosine_lr(step, total, config) <= 0.3 for step in range(total + 3))


def test_a_ratio_of_one_is_constant_after_the_warmup():
    config = OptimizerConfig(lr=0.3, warmup=0.1, min_lr_ratio=1)
    assert {cosine_lr(step, 50, config) for step in range(5, 50)} == {0.3}


def test_patience_counts_updates_without_improvement():
    patience = Patience(2)
    assert [patience.update(value) for value in (0.5, 0.5, 0.6, math.nan)] == [True, False, True, False]
    assert not patience.exhausted and patience.best == 0.6
    assert not patience.update(0.1)
    assert patience.exhausted


def test_patience_that_has_only_seen_nan_takes_the_first_number():
    patience = Patience(5)
    assert not patience.update(math.nan)
    assert patience.update(-1.0)


def test_patience_continues_from_its_state():
    patience = Patience(3)
    for value in (0.5, 0.4, 0.3):
        patience.update(value)
    resumed = Patience.from_dict(json.loads(json.dumps(patience.to_dict())))
    assert resumed == patience and not resumed.exhausted
    resumed.update(0.2)
    assert resumed.exhausted
