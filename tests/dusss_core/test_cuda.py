"""What must hold on a CUDA device: it computes what the CPU computes, goes on where the CPU stopped, and is not waited
for. Bits are not promised there: kernels add in an order of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dusss_core.errors import NotFinite
from dusss_core.objectives import reads_sentences
from dusss_core.phases import Phase
from dusss_core.training import Pretrainer, Segmenter, initial_shared
from dusss_core.training.trainer import PhaseTrainer
from tests.dusss_core.conftest import make_config, make_split
from tests.dusss_core.objectives.sites import METHODS, config_of, pictures
from tests.dusss_core.training.test_waiting import made_up_text

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WITHOUT_GRAIN = [name for name in METHODS if name not in ("mean_teacher_mse", "cct", "ssnet", "lvit", "lvit_balanced")]
"""Methods that draw the same on CPU and CUDA where the strong view is off: these draw numbers on the device, or have
dropout."""


@pytest.fixture(autouse=True)
def _switches() -> Iterator[None]:
    """Torch's own, put back afterwards."""
    flags = torch.backends.cudnn
    before = flags.allow_tf32, flags.benchmark
    yield
    torch.cuda.set_sync_debug_mode("default")
    flags.allow_tf32, flags.benchmark = before


@pytest.fixture(autouse=True)
def _no_text_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Features are made up here, so only their width is asked for: a machine that lacks MiniLM runs these tests."""
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 384}')
    monkeypatch.setattr("dusss_core.text.encoder._folder_of", lambda name: tmp_path)


def segmenter(name: str, device: torch.device, **segment) -> Segmenter:
    config, train = config_of(name, **segment), pictures()
    logits = (4 * train.masks[:, None].astype(np.float16) - 2) if config.method.text_mask else None
    text = made_up_text(train.sentences, device) if reads_sentences(config) else None
    trainer = Segmenter(config, "a", train, train, text_logits=logits, text=text, device=device)
    trainer.load_shared(initial_shared(config, Phase.SEGMENT))
    return trainer


def pretrainer(device: torch.device, **settings) -> Pretrainer:
    config, train = make_config(**settings), make_split()
    trainer = Pretrainer(config, "a", train, train, made_up_text(train.sentences, device), device=device)
    trainer.load_shared(initial_shared(config, Phase.PRETRAIN))
    return trainer


def one_step(trainer: PhaseTrainer) -> dict[str, float]:
    """Figures of a step late in the phase, and the norm of each gradient, in float32 without TF32."""
    torch.backends.cudnn.allow_tf32 = False
    trainer.model.train()
    draw = torch.Generator().manual_seed(0)
    [batch] = trainer.batches(1, draw)
    figures = trainer.set_gradients(batch, draw, 0.9, [])
    norms = {name: p.grad.norm() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return {name: value.item() for name, value in {**figures, **norms}.items()}


def agree(here: dict[str, float], there: dict[str, float]) -> None:
    assert here.keys() == there.keys()
    largest = max(map(abs, here.values()))
    assert there == {name: pytest.approx(value, rel=5e-3, abs=1e-4 * largest) for name, value in here.items()}


@pytest.mark.parametrize("name", WITHOUT_GRAIN)
def test_losses_and_gradients_of_step_2_are_those_of_the_cpu(name):
    agree(*(one_step(segmenter(name, device, strong=0)) for device in (CPU, CUDA)))


@pytest.mark.parametrize("classes", [1, 2])
def test_losses_and_gradients_of_step_1_are_those_of_the_cpu(classes):
    settings = {"image": {"size": 32, "classes": classes}, "pretrain": {"batch": 6, "strong": 0}}
    agree(*(one_step(pretrainer(device, **settings)) for device in (CPU, CUDA)))


@pytest.mark.parametrize("name", METHODS)
def test_a_round_of_step_2_waits_for_nothing(name):
    waits_for_nothing(segmenter(name, CUDA))


def test_a_round_of_step_1_waits_for_nothing():
    waits_for_nothing(pretrainer(CUDA))


def waits_for_nothing(trainer: PhaseTrainer) -> None:
    steps = []
    trainer.progress = lambda step, of, loss: steps.append(loss)
    trainer.train_round(1)  # the first step brings the split to the device
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    trainer.train_round(2)
    torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 2 * trainer.steps_per_round and all(map(math.isfinite, steps))


def test_the_whole_split_lives_on_the_device_as_it_is_stored():
    trainer = segmenter("dusss", CUDA)
    trainer.train_round(1)
    for resident, dtype in (
        (trainer._images, torch.uint8),
        (trainer._masks, torch.uint8),
        (trainer._text_logits, torch.float16),
    ):
        assert resident.on_device and resident._whole.is_cuda and resident._whole.dtype == dtype
    positions = np.array([3, 0, 3])
    assert torch.equal(trainer._images.take(positions).cpu(), torch.from_numpy(trainer.train.images[positions]))


def test_a_split_that_does_not_fit_trains_alike(monkeypatch):
    fits = segmenter("dusss", CUDA).train_round(1)
    monkeypatch.setattr("dusss_core.training.resident.free_memory", lambda device: 0)
    trainer = segmenter("dusss", CUDA)
    assert trainer.train_round(1) == pytest.approx(fits, rel=1e-3, abs=1e-5)
    assert not trainer._images.on_device


@pytest.mark.parametrize("name", METHODS)
def test_a_round_repeats_up_to_rounding(name):
    first, second = (segmenter(name, CUDA).train_round(2) for _ in range(2))
    assert second == pytest.approx(first, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("way", [(CPU, CUDA), (CUDA, CPU)])
@pytest.mark.parametrize("runtime", [{}, "auto"])
def test_a_site_that_changes_its_device_between_rounds_goes_on(way, runtime):
    def trainer(device):
        config = config_of("dusss", strong=0).model_copy(update={"runtime": make_config(runtime=runtime).runtime})
        train = pictures()
        logits = 4 * train.masks[:, None].astype(np.float16) - 2
        return Segmenter(config, "a", train, train, text_logits=logits, device=device)

    before, stays, goes_on = trainer(way[0]), trainer(way[0]), trainer(way[1])
    before.load_shared(initial_shared(before.config, Phase.SEGMENT))
    before.train_round(1)
    for each in (stays, goes_on):
        each.load_private(before.private())
        each.load_shared(before.shared())
    assert goes_on.train_round(2)["loss"] == pytest.approx(stays.train_round(2)["loss"], rel=0.05)
    assert goes_on.step == stays.step


def test_a_loss_that_is_not_finite_ends_the_round():
    trainer = segmenter("dusss", CUDA)
    losses = trainer.losses
    trainer.losses = lambda *given: (math.inf * losses(*given)[0], {})
    with pytest.raises(NotFinite, match="round 1, step 1: the loss is inf"):
        trainer.train_round(1)


def test_evaluation_says_what_the_cpu_says():
    figures = [segmenter("dusss", device).validate() for device in (CPU, CUDA)]
    assert figures[1] == pytest.approx(figures[0], abs=5e-3)
