"""Whether a GPU computes what the CPU computes: one batch of both phases, and predictions, in float32."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.made_up import made_up_text_logits
from benchmarks.gpu.variants import EAGER, policy
from dusss_core import augment
from dusss_core.build import build_student
from dusss_core.config import TrainingConfig
from dusss_core.inference import predict_logits
from dusss_core.objectives import reads_sentences
from dusss_core.phases import Phase
from dusss_core.records import Split
from dusss_core.seeds import generator
from dusss_core.training import Pretrainer, Segmenter

AGREES, FAILS = 1e-3, 5e-2
"""Relative difference up to which figures agree, and from which something is wrong. Between them: rounding, and a pixel
of a mask that fell to the other side of a nearest neighbour."""
_BATCH, _RECORDS, _STEPS = 8, 64, 4


def compare(config: TrainingConfig, splits: dict[str, Split], text: Any, device: torch.device) -> dict[str, Any]:
    """The loss, its parts, the gradient and its distance, for each phase; and the student's logits.

    Args:
        text: makes the bank of sentences on a device.

    Returns:
        By phase: "cpu" and "device", figures by name; "worst", the largest relative difference of any; "agrees".
    """
    few = _few(splits["train"])
    found = {}
    with _without_grain():
        for phase in _phases(config):
            here, there = (
                _one_batch(_exact(config), phase, few, splits["val"], text, torch.device(where))
                for where in ("cpu", device)
            )
            own, other = here.pop("gradient"), there.pop("gradient")
            here["gradient_norm"], there["gradient_norm"] = own.norm().item(), other.norm().item()
            worst = max(abs(here[name] - there[name]) / max(abs(here[name]), 1e-2) for name in here)
            distance = ((own - other).norm() / own.norm()).item()
            found[str(phase)] = {
                "cpu": here,
                "device": there,
                "worst": worst,
                # a pixel of a mask moves single gradients more than their norm
                "gradient_distance": distance,
                "agrees": worst <= AGREES and distance <= 10 * AGREES,
                "fails": not (worst < FAILS and distance < 4 * FAILS),
            }
    found["predict"] = _predictions(_exact(config), splits["val"], device)
    return found


def habits(config: TrainingConfig, splits: dict[str, Split], text: Any, device: torch.device) -> dict[str, Any]:
    """Whether training repeats bit for bit on the device, and where a step waits for it, for each phase.

    Returns:
        By phase: "same_bits" of two trainings of two rounds; "worst", the largest difference of a weight between them;
        "waits", lines of code at which the second round waited for a GPU.
    """
    few, found = _few(splits["train"]), {}
    for phase in _phases(config):
        models = []
        for _ in range(2):
            trainer = _trainer(config.model_copy(deep=True), phase, few, splits["val"], text, device)
            trainer.steps_per_round = _STEPS
            trainer.train_round(1)
            with _watched(device) as waits:
                trainer.train_round(2)
            models.append(trainer.shared())
        one, other = models
        worst = max((one[name].double() - other[name].double()).abs().max().item() for name in one)
        same = all(torch.equal(one[name], other[name]) for name in one)
        found[str(phase)] = {"same_bits": same, "worst": worst, "waits": sorted(set(waits))}
    return found


def _phases(config: TrainingConfig) -> list[Phase]:
    return [Phase.PRETRAIN, Phase.SEGMENT] if config.method.text_mask else [Phase.SEGMENT]


@contextmanager
def _watched(device: torch.device) -> Iterator[list[str]]:
    """A list of the places at which torch has the host wait for a GPU inside."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in told if "synchroniz" in str(warning.message)]
    found += [f"{'/'.join(Path(wait.filename).parts[-2:])}:{wait.lineno}" for wait in waits]


def _trainer(config, phase, train: Split, val: Split, text: Any, device: torch.device) -> Any:
    if phase == Phase.PRETRAIN:
        trainer = Pretrainer(config, "check", train, val, text(device), device=device)
    else:
        logits = made_up_text_logits(train) if config.method.text_mask else None
        told = text(device) if reads_sentences(config) else None
        trainer = Segmenter(config, "check", train, val, text_logits=logits, text=told, device=device)
    trainer.load_shared(trainer.shared())
    trainer.settings.batch = _BATCH
    return trainer


def _one_batch(config, phase, train: Split, val: Split, text: Any, device: torch.device) -> dict[str, Any]:
    trainer = _trainer(config, phase, train, val, text, device)
    draw = generator("check", phase)
    trainer.model.train()
    with policy(EAGER, device):  # a trainer that is made may set torch's switches as it likes them
        loss, parts = trainer.losses(next(iter(trainer.batches(1, draw))), draw, 0.5)
        loss.backward()
    gradients = [p.grad.detach().double().flatten().cpu() for p in trainer.model.parameters() if p.grad is not None]
    figures = {name: float(value) for name, value in {"loss": loss.detach(), **parts}.items()}
    return {**figures, "gradient": torch.cat(gradients)}


def _predictions(config: TrainingConfig, split: Split, device: torch.device) -> dict[str, Any]:
    images = np.ascontiguousarray(split.images[:4])
    with policy(EAGER, device):
        here, there = (
            predict_logits(build_student(config).to(where), images, config.image, where, 4).astype(np.float32)
            for where in (torch.device("cpu"), device)
        )
    worst = float(np.abs(here - there).max() / max(np.abs(here).max(), 1e-2))
    return {"worst": worst, "agrees": worst <= 2 * AGREES, "fails": not worst < FAILS}  # logits are float16


def _few(train: Split) -> Split:
    """A few records of both kinds, whatever share is labelled."""
    few = train.select(np.arange(_RECORDS) % len(train))
    return replace(few, labelled=np.arange(_RECORDS) < _RECORDS // 2)


def _exact(config: TrainingConfig) -> TrainingConfig:
    config = config.model_copy(deep=True)
    config.runtime = config.runtime.model_copy(update={"amp": False, "channels_last": False})
    return config


@contextmanager
def _without_grain() -> Iterator[None]:
    """A strong view's grain is the one thing that may be drawn on the device, where the numbers are others."""
    *others, _, cutout = chances = augment._CHANCES
    augment._CHANCES = (*others, 0.0, cutout)
    try:
        yield
    finally:
        augment._CHANCES = chances


# ---- the project's own tests for a GPU ----


def run_marked_tests(root: Path, timeout_s: float) -> dict[str, Any]:
    """The tests that are marked `cuda`, in a process of their own; what came of them, in pytest's words."""
    files = marked_files(root)
    if not files:
        return {"outcome": "there are none"}
    line = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *map(str, files)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    try:
        done = subprocess.run(
            line, cwd=root, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"outcome": f"not done within {timeout_s:.0f} s"}
    lines = (done.stdout or done.stderr).strip().splitlines()
    return {"exit_code": done.returncode, "outcome": lines[-1] if lines else "", "last_lines": lines[-30:]}


def marked_files(root: Path) -> list[Path]:
    """Test files with a test that is marked `cuda`; others may import what a GPU machine lacks."""
    files = sorted((root / "tests" / "dusss_core").rglob("test_*.py"))
    return [file.relative_to(root) for file in files if "mark.cuda" in file.read_text(encoding="utf-8")]
