"""The forms of one training step, and of prediction, that benchmarks/steps.py times against each other.

`eager` is what a plain script does: float32 without TF32, NCHW, pictures from the host's memory at each step, AdamW
tensor by tensor, every figure read at once. Its losses and its augmentation are the project's, so that both do the same
step. All others are the project's trainers, round and all, with the machine used in another way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from torch import nn

from benchmarks.gpu.made_up import made_up_bank, made_up_split, made_up_text_logits, with_made_up_text
from benchmarks.grid.cell import Cell
from dusss_core.build import build_student
from dusss_core.config import RuntimeConfig, TrainingConfig
from dusss_core.inference import predict_logits
from dusss_core.objectives import reads_sentences
from dusss_core.phases import Phase
from dusss_core.runtime import runtime_of, tune
from dusss_core.seeds import generator
from dusss_core.training import Pretrainer, Segmenter

SIZES = ("demo", "qata_cpu", "paper")
"""The studies of these names; paper: profile `gpu` of the accuracy grid."""
PREDICT = "predict"
PHASES = (*(str(phase) for phase in Phase), PREDICT)
_CONFIGS = Path(__file__).parents[2] / "configs"
_HALFWAY = 500
"""The round that is trained, of twice as many: past all ramps, far from the end."""


@dataclass(frozen=True)
class Variant:
    """How the machine is used."""

    name: str
    amp: bool = False
    channels_last: bool = False
    plain: bool = False
    """A plain loop in place of the trainer's."""
    tf32: bool = False
    benchmark: bool = False
    """cudnn.benchmark."""
    compiled: bool = False
    """torch.compile of the networks."""
    auto: bool = False
    """`runtime: auto`, the switches of torch included."""


EAGER = Variant("eager", plain=True)
AUTO = Variant("runtime: auto", auto=True)
ON_CPU = (
    EAGER,
    Variant("fp32"),
    Variant("fp32 channels_last", channels_last=True),
    Variant("bf16", amp=True),
    Variant("bf16 channels_last", amp=True, channels_last=True),
    AUTO,
)
ON_CUDA = (
    EAGER,
    Variant("eager tf32", plain=True, tf32=True),
    Variant("fp32"),
    Variant("fp32 channels_last", channels_last=True),
    Variant("tf32 channels_last", channels_last=True, tf32=True),
    Variant("bf16", amp=True, tf32=True),
    Variant("bf16 channels_last", amp=True, channels_last=True, tf32=True),
    Variant("bf16 channels_last cudnn.benchmark", amp=True, channels_last=True, tf32=True, benchmark=True),
    AUTO,
)
COMPILED = Variant("bf16 channels_last compiled", amp=True, channels_last=True, tf32=True, compiled=True)


def variants_of(device: torch.device, compiled: bool = False) -> tuple[Variant, ...]:
    """Those that are timed on `device`, `EAGER` first."""
    return (ON_CUDA if device.type == "cuda" else ON_CPU) + ((COMPILED,) if compiled else ())


def config_of(size: str, batch: int, variant: Variant, folder: Path) -> TrainingConfig:
    """The settings of `size`, with a text encoder that is not there (`folder`, see `made_up`)."""
    if size == "paper":
        values: dict[str, Any] = Cell("qata", 0.25, "dusss", "centralized", "gpu", seed=1).base()
    else:
        values = yaml.safe_load((_CONFIGS / f"{size}.yaml").read_text(encoding="utf-8"))
    known = {key: value for key, value in values.items() if key in TrainingConfig.model_fields}
    config = with_made_up_text(TrainingConfig.model_validate(known), folder)
    chosen = {"amp": variant.amp, "channels_last": variant.channels_last, "eval_batch": batch}
    config.runtime = RuntimeConfig.model_validate("auto" if variant.auto else chosen)
    for settings in (config.pretrain, config.segment):
        settings.batch, settings.rounds = batch, 2 * _HALFWAY
    return config


class Work(Protocol):
    """What is timed."""

    def run(self, n: int) -> None:
        """Do `n` steps, or predict `n` pictures."""


def work_of(phase: str, size: str, batch: int, variant: Variant, device: torch.device, folder: Path) -> Work:
    """Networks and made-up pictures of `size`, ready to run."""
    config = config_of(size, batch, variant, folder)
    with policy(variant, device):
        if phase == PREDICT:
            return Prediction(config, device)
        kind = PlainTraining if variant.plain else Training
        work = kind(config, phase, batch, device)
    if variant.compiled:
        for network in work.networks():
            network.compile()
    return work


@contextmanager
def policy(variant: Variant, device: torch.device) -> Iterator[None]:
    """The global switches of `variant` on `device`; those that were set before come back."""
    conv, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = conv.allow_tf32, matmul.allow_tf32, conv.benchmark
    if variant.auto:
        tune(TrainingConfig.model_validate({"runtime": "auto"}), device)
    else:
        conv.allow_tf32 = matmul.allow_tf32 = variant.tf32
        conv.benchmark = variant.benchmark
    try:
        yield
    finally:
        conv.allow_tf32, matmul.allow_tf32, conv.benchmark = before


class Training:
    """Steps of the project's trainer, as a round of a study makes them."""

    def __init__(self, config: TrainingConfig, phase: str, batch: int, device: torch.device):
        self.trainer = self._build(Pretrainer, Segmenter, config, phase, batch, device)
        self.round = _HALFWAY

    def run(self, n: int) -> None:
        self.trainer.steps_per_round = n
        self.trainer.train_round(self.round)
        self.round += 1

    def networks(self) -> list[nn.Module]:
        """That are run in a step."""
        objective = getattr(self.trainer, "objective", None)
        return [self.trainer.model, *filter(None, [getattr(objective, "teacher", None)])]

    @staticmethod
    def _build(pretrainer, segmenter, config, phase, batch, device):
        image = config.image
        split = made_up_split(4 * batch, image.size, image.channels)
        val = made_up_split(4, image.size, image.channels, seed=2)
        if phase == Phase.PRETRAIN:
            trainer = pretrainer(config, "steps", split, val, made_up_bank(config, split, device), device=device)
        else:
            told = {"text": made_up_bank(config, split, device)} if reads_sentences(config) else {}
            logits = made_up_text_logits(split)
            trainer = segmenter(config, "steps", split, val, text_logits=logits, **told, device=device)
        trainer.load_shared(trainer.shared())
        return trainer


class _FromHost:
    """Pictures, masks and text-guided masks lie in the host's memory, and are fetched as a step wants them."""

    def pictures(self, positions):
        return torch.from_numpy(self.train.images[positions]).to(self.device).float() / 255

    def masks(self, positions):
        return torch.from_numpy(self.train.masks[positions]).to(self.device)


class _PlainPretrainer(_FromHost, Pretrainer):
    pass


class _PlainSegmenter(_FromHost, Segmenter):
    pass


class PlainTraining(Training):
    """The same steps in a plain loop."""

    def __init__(self, config: TrainingConfig, phase: str, batch: int, device: torch.device):
        self.trainer = self._build(_PlainPretrainer, _PlainSegmenter, config, phase, batch, device)
        self.settings = self.trainer.settings.optimizer
        self.trained = [p for p in self.trainer.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=self.settings.lr, weight_decay=self.settings.weight_decay, foreach=False, fused=False
        )
        self.draw = generator("steps", phase)

    def run(self, n: int) -> None:
        trainer = self.trainer
        trainer.model.train()
        for batch in trainer.batches(n, self.draw):
            loss, parts = trainer.losses(batch, self.draw, 0.5)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.trained, self.settings.clip_norm, foreach=False)
            self.optimizer.step()
            trainer.after_step(0.5)
            trainer.step += 1
            for figure in (loss.detach(), *parts.values()):
                float(figure)


class Prediction:
    """The student's logits, as an evaluation makes them."""

    def __init__(self, config: TrainingConfig, device: torch.device):
        self.config, self.device = config, device
        self.runtime = runtime_of(config, Phase.SEGMENT, device)
        self.model = build_student(config).to(device).to(memory_format=self.runtime.memory_format).eval()
        self.images = np.zeros((0, config.image.channels, config.image.size, config.image.size), np.uint8)

    def run(self, n: int) -> None:
        if n > len(self.images):
            self.images = made_up_split(n, self.config.image.size, self.config.image.channels).images
        batch, amp = self.runtime.eval_batch, self.runtime.amp
        predict_logits(self.model, self.images[:n], self.config.image, self.device, batch, amp=amp)

    def networks(self) -> list[nn.Module]:
        """That are run."""
        return [self.model]
