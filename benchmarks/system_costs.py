"""What each system of docs/systems.md costs: networks counted, steps timed, memory of a training process.

Parameters, multiply-accumulates and bytes are those of the network that the paper's size has here (profile gpu of the
accuracy grid: 224 x 224 in three channels, one logit for one class), counted by torch's own counter, attention
included. Trained: all that an optimiser moves. Deployed: what a logit depends on. Bytes: what a site sends in a round,
float32. A step is timed at the size of profile cpu (112 x 112, 16 pictures, one thread), in turns with a step of
supervised training, and memory is the peak of a process of its own that makes a few such steps; pictures are made up.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.grid.cell import Cell
from benchmarks.grid.methods.presets import METHODS
from dusss_core.config import TrainingConfig
from dusss_core.errors import UserError
from dusss_core.phases import Phase

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.gpu.variants import Training

PARTS = ("sizes", "steps", "memory")
_BASE = "supervised"
"""The row whose step is 1."""
_STEPS = {Phase.SEGMENT: "step", Phase.PRETRAIN: "step_1"}
_MEMORY = {Phase.SEGMENT: "memory", Phase.PRETRAIN: "memory_1"}


def measure(rows: Sequence[str], parts: Sequence[str] = PARTS, repeats: int = 5) -> dict[str, dict[str, Any]]:
    """Row of the grid -> what it costs, by `parts`; a key that ends with _1 is of step 1, where there is one.

    sizes    "trained", "deployed" parameters and "macs" of its student at the paper's size, "vlm", the parameters that
             step 1 trains (0: there is none), "sent" and "sent_1", the bytes that a site sends in a round
    steps    "step", "step_1": time of a step over that of supervised training, the median of `repeats` turns
    memory   "memory", "memory_1": peak bytes of a process that trains
    """
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for row in rows:
            print(row, flush=True)
            found[row] = {
                **(_size(row, folder) if "sizes" in parts else {}),
                **(_times(row, repeats, folder) if "steps" in parts else {}),
                **(_memory(row, folder) if "memory" in parts else {}),
            }
    return found


def count(network: nn.Module, config: TrainingConfig) -> dict[str, int]:
    """ "trained" and "deployed" parameters of a student, and "macs", multiply-accumulates for one picture
    (and its sentence, if it is given one)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dusss_core.models.words import Words
    from dusss_core.objectives import reads_sentences
    from dusss_core.text.encoder import embedding_width

    network = network.to("meta").eval()
    shown = [torch.zeros(1, config.image.channels, config.image.size, config.image.size, device="meta")]
    if reads_sentences(config):
        tokens = torch.zeros(1, config.vlm.text.max_tokens, embedding_width(config.vlm.text), device="meta")
        shown.append(Words(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device="meta")))
    with FlopCounterMode(display=False) as counter:
        logits = network(*shown)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    used = torch.autograd.grad(logits.sum(), weights, allow_unused=True)
    deployed = sum(weight.numel() for weight, gradient in zip(weights, used, strict=True) if gradient is not None)
    return {"trained": _parameters(network), "deployed": deployed, "macs": counter.get_total_flops() // 2}


def sent(network: nn.Module) -> int:
    """Bytes of all that a site sends of it in a round: trained weights, and statistics of normalisation."""
    from dusss_core.models.weights import shared_tensors

    return sum(value.numel() * value.element_size() for value in shared_tensors(network, local_norm=False).values())


def _parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


def _settings(row: str, profile: str, folder: Path) -> TrainingConfig:
    from benchmarks.gpu.made_up import with_made_up_text

    values = Cell("qata", 0.25, row, "centralized", profile, seed=1).values(METHODS[row])
    known = {key: value for key, value in values.items() if key in TrainingConfig.model_fields}
    return with_made_up_text(TrainingConfig.model_validate(known), folder)


def _phases(row: str, folder: Path) -> list[Phase]:
    told = _settings(row, "cpu", folder).method.text_mask
    return [Phase.SEGMENT, *([Phase.PRETRAIN] if told else [])]


def _size(row: str, folder: Path) -> dict[str, int]:
    from dusss_core.build import build_student, build_vlm

    config = _settings(row, "gpu", folder)
    student = build_student(config)
    found = {"sent": sent(student), **count(student, config), "vlm": 0}
    if config.method.text_mask:
        vlm = build_vlm(config)
        found |= {"sent_1": sent(vlm), "vlm": _parameters(vlm)}
    return found


def _training(row: str, phase: Phase, folder: Path) -> Training:
    import torch

    from benchmarks.gpu.variants import Training

    torch.set_num_threads(1)
    config = _settings(row, "cpu", folder)
    config.pretrain.rounds = config.segment.rounds = 1000  # as Training expects: it trains the round halfway
    return Training(config, phase, config.segment.batch, torch.device("cpu"))


def _times(row: str, repeats: int, folder: Path) -> dict[str, float]:
    """Ratios of a step's time: median over turns, in each of which both are timed."""

    def seconds(training: Training) -> float:
        began = time.process_time()
        training.run(2)
        return (time.process_time() - began) / 2

    base, found = _training(_BASE, Phase.SEGMENT, folder), {}
    for phase in _phases(row, folder):
        other = _training(row, phase, folder)
        base.run(2), other.run(2)
        found[_STEPS[phase]] = statistics.median(seconds(other) / seconds(base) for _ in range(repeats))
    return found


def _memory(row: str, folder: Path) -> dict[str, int]:
    found = {}
    for phase in _phases(row, folder):
        # a process for each: a peak does not fall again
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found[_MEMORY[phase]] = pool.submit(_peak, row, phase, folder).result()
    return found


def _peak(row: str, phase: Phase, folder: Path) -> int:
    """Bytes that this process has held at most, once it has trained a few steps.

    Raises:
        UserError: not on Linux.
    """
    _training(row, phase, folder).run(4)
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError as error:
        raise UserError("memory: no /proc/self/status here", "count it on Linux") from error
    # not ru_maxrss, which begins with what the parent had when it forked
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
