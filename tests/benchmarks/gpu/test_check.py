"""The comparison of a GPU with the CPU sees a difference, and none where there is none."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import check
from benchmarks.gpu.made_up import made_up_bank, made_up_split
from benchmarks.gpu.variants import EAGER, config_of
from dusss_core import augment
from dusss_core.training import Segmenter

CPU = torch.device("cpu")


@pytest.fixture
def compared(tmp_path):
    config = config_of("demo", 4, EAGER, tmp_path)
    splits = {"train": made_up_split(16, 64, 1), "val": made_up_split(4, 64, 1)}
    return lambda: check.compare(config, splits, lambda device: made_up_bank(config, splits["train"], device), CPU)


@pytest.mark.slow
def test_a_device_that_computes_the_same_agrees(compared):
    before = augment._CHANCES
    found = compared()
    assert set(found) == {"pretrain", "segment", "predict"}
    assert all(figures["agrees"] and not figures["fails"] and figures["worst"] == 0 for figures in found.values())
    assert found["segment"]["cpu"].keys() >= {"loss", "gradient_norm", "supervised", "semi"}
    assert before == augment._CHANCES


@pytest.mark.slow
def test_whether_training_repeats_is_told(tmp_path, monkeypatch):
    config = config_of("demo", 4, EAGER, tmp_path)
    splits = {"train": made_up_split(16, 64, 1), "val": made_up_split(4, 64, 1)}
    arguments = config, splits, lambda device: made_up_bank(config, splits["train"], device), CPU
    found = check.habits(*arguments)
    assert all(figures == {"same_bits": True, "worst": 0.0, "waits": []} for figures in found.values())
    calls = []
    true = Segmenter.after_step

    def after_step(self, share_done):
        calls.append(self)
        if len({id(trainer) for trainer in calls}) == 2:  # the second trainer
            with torch.no_grad():
                next(self.student.parameters()).add_(1e-3)
        true(self, share_done)

    monkeypatch.setattr(Segmenter, "after_step", after_step)
    found = check.habits(*arguments)
    assert found["pretrain"]["same_bits"] and not found["segment"]["same_bits"] and found["segment"]["worst"] > 1e-3


def test_where_a_step_waits_is_told(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with check._watched(SimpleNamespace(type="cuda")) as places:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert modes == ["warn", "default"] and len(places) == 1 and places[0].startswith("gpu/test_check.py:")


@pytest.mark.parametrize(("factor", "fails"), [(1.005, False), (1.2, True)])
def test_a_device_that_computes_otherwise_does_not(compared, monkeypatch, factor, fails):
    """The second of two trainers, the device's, gets other losses."""
    made = []
    true = Segmenter.losses

    def losses(self, *arguments):
        made.append(self)
        loss, parts = true(self, *arguments)
        return (loss * factor, parts) if len(made) == 2 else (loss, parts)

    monkeypatch.setattr(Segmenter, "losses", losses)
    found = compared()
    assert not found["segment"]["agrees"] and found["segment"]["fails"] == fails
    assert found["pretrain"]["agrees"]


def test_a_loss_that_is_not_a_number_fails(compared, monkeypatch):
    true = Segmenter.losses
    monkeypatch.setattr(Segmenter, "losses", lambda self, *a: (true(self, *a)[0] * float("nan"), {}))
    assert compared()["segment"]["fails"]


def test_the_comparison_is_in_float32_whatever_a_trainer_sets(compared, monkeypatch):
    """TF32 would differ from the CPU in the third digit."""
    switches = []
    true = Segmenter.losses

    def losses(self, *arguments):
        switches.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark))
        return true(self, *arguments)

    monkeypatch.setattr(Segmenter, "losses", losses)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    compared()
    assert switches == [(False, False)] * 2


def test_marked_tests_are_found_and_run(tmp_path):
    folder = tmp_path / "tests" / "dusss_core"
    folder.mkdir(parents=True)
    assert check.run_marked_tests(tmp_path, 60)["outcome"] == "there are none"
    (folder / "test_other.py").write_text("import flwr_is_not_here\n")
    (folder / "test_gpu.py").write_text(
        "import pytest\n\n@pytest.mark.cuda\ndef test_a():\n    pass\n\ndef test_b():\n    assert False\n"
    )
    found = check.run_marked_tests(tmp_path, 60)
    assert found["exit_code"] == 0 and "1 passed" in found["outcome"]
