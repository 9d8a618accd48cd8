"""The audit of one run: it hears the production trainer, accuses one without noise, and its page says what it found."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import private_audit
from dusss_core.errors import UserError
from dusss_core.privacy.randomness import Randomness
from dusss_core.records import Split
from server.study.config import load_study

STUDY = (
    "method.preset=supervised",
    "local_norm=false",
    "student={encoder: test_resnet, width: 4, norm: group}",
    "image.size=32",
    "segment.rounds=2",
    "privacy={student: head, keep_features: true, sample_rate: 1, steps_per_round: 4, clip: 0.001}",
)


def candidates(n=48):
    """Stripes of all kinds, with boxes for masks: records whose gradients differ."""
    draw = np.random.default_rng(0)
    down, across = np.mgrid[:32, :32]
    images, masks = np.zeros((n, 1, 32, 32), np.uint8), np.zeros((n, 32, 32), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        waves = draw.uniform(0.1, 1.5) * across + draw.uniform(0.1, 1.5) * down + draw.uniform(0, 6)
        image[0] = 127 + 120 * draw.uniform(0.2, 1) * np.sin(waves)
        top, left = draw.integers(0, 20, 2)
        mask[top : top + draw.integers(4, 30), left : left + draw.integers(4, 30)] = 1
    everybody = np.ones(n, bool)
    return Split(images, masks, everybody, everybody, np.full(n, -1), (), tuple(f"r{i}" for i in range(n)))


def audited(noise):
    study = load_study("demo", [*STUDY, f"privacy.noise_multiplier={noise}"])
    return private_audit.audit(study, candidates(), "canaries", 8.0)


def test_a_run_with_noise_is_not_accused_and_one_whose_noise_is_left_out_is(monkeypatch):
    # nothing here repeats: an honest run is accused once in a thousand
    monkeypatch.setattr(private_audit, "CONFIDENCE", 0.999)
    monkeypatch.setattr(private_audit, "GUESSED_SHARE", 0.5)
    found = audited(8.0)
    assert found["upper_bound"] == pytest.approx(1.3565, abs=1e-3)
    assert 0 <= found["lower_bound"] <= found["upper_bound"]
    assert found["candidates"] == 48 and found["guesses"] == 24 and 8 < found["inside"] < 40
    noise_like = Randomness.noise_like
    monkeypatch.setattr(Randomness, "noise_like", lambda self, tensors, std: noise_like(self, tensors, 1e-6 * std))
    found = audited(80.0)
    assert found["lower_bound"] > found["upper_bound"]


def test_a_table_has_both_bounds_and_no_results_make_no_page(tmp_path):
    row = {"study": "polypgen", "seed": 1, "kind": "records", "budget": 8.0, "candidates": 291, "right": 40}
    told = private_audit.table([{**row, "guesses": 72, "lower_bound": 0.1234, "upper_bound": 8.0}])
    assert "| `polypgen`, seed 1 | records as they are | 291 | 40 of 72 | 0.12 | 8.00 |" in told
    with pytest.raises(UserError, match="no results"):
        private_audit.write_page([], tmp_path / "page.md")
