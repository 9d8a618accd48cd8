"""A trial: one federation of a cell trained with one method, within a limit of time, and its figures.

Choices (early stopping, the final round) are made on validation pictures while it trains; the test pictures are read
here, once, when it is over.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.grid.cell import Cell, merged
from benchmarks.grid.hospitals import partition_of
from feddusss import configfile
from server.runs.events import PlainReporter
from server.study.config import StudyConfig

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dusss_core.records import Split
    from server.simulation.local import LocalSite


class OutOfTime(Exception):
    """The limit is reached; the next call goes on after the last round that was saved."""


class Clock(PlainReporter):
    """Prints a line per round, and ends the training where the next round would pass the limit."""

    def __init__(self, limit_s: float | None):
        super().__init__()
        self._end = None if limit_s is None else time.monotonic() + limit_s
        self._longest = 0.0

    def on_round_end(self, phase: str, round: int, metrics: Mapping[str, float], best_round: int | None) -> None:
        super().on_round_end(phase, round, metrics, best_round)
        self._longest = max(self._longest, metrics.get("seconds", 0.0))
        self.check()

    def check(self) -> None:
        """Raise OutOfTime where no further round fits."""
        if self._end is not None and time.monotonic() + self._longest > self._end:
            raise OutOfTime


@dataclass(frozen=True)
class Trial:
    """One federation to train."""

    cell: Cell
    folder: Path
    """For the run."""
    sites: Sequence[Path]
    data_root: Path
    clock: Clock
    overrides: tuple[str, ...] = ()

    def study(self, changes: Mapping[str, Any]) -> StudyConfig:
        """The cell's study with the method's `changes` (top-level keys)."""
        return make_study(self.cell, self.data_root, self.overrides, changes)


@dataclass(frozen=True)
class Trained:
    """What a method made."""

    study: StudyConfig
    """With the method's switches."""
    student: dict[str, Tensor]
    vlm: dict[str, Tensor] | None
    """None where the method has none."""
    val: Mapping[str, float]
    """Validation figures of the student: "dice", "iou"."""
    hidden_text_dice: float | None
    """Of the text-guided masks on the unlabelled training pictures, mean over sites."""
    seconds: float
    """That training took, over all calls."""


def make_study(
    cell: Cell, data_root: Path, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None
) -> StudyConfig:
    """The cell's whole study.

    Raises:
        UserError: an unknown setting, or an override that does not fit.
    """
    simulation = {"data": cell.source()["data"], "partition": partition_of(cell)}
    if cell.small:
        simulation |= {"workers": 2, "threads": 1}
    values = {**cell.base(), "data": {"root": str(data_root)}, "simulation": simulation}
    values = merged(values, changes or {})
    return configfile.parse(StudyConfig, values, f"the study of {cell.name}", overrides)


def figures_on_test(trained: Trained, sites: Sequence[Path]) -> dict[str, dict[str, np.ndarray]]:
    """Figures of each test picture with a mask, by site: "dice", "iou", "hd95" of the student, which sees the picture
    alone, and "text_dice" and "merged_dice" of the text-guided mask and of the sum of both logits, NaN without a
    sentence."""
    from server.simulation.local import load_local

    found = {}
    for file in sites:
        site = load_local(file, trained.study)
        split = site.splits["test"].select(site.splits["test"].masked.nonzero()[0])
        if len(split):
            found[site.name] = _figures(trained, split, site)
    return found


def provenance() -> dict[str, Any]:
    """Commit, device and peak memory of this process and its children."""
    import torch

    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=False)
    mark = "+changes" if changed.stdout.strip() else ""
    used = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    unit = 1e9 if sys.platform == "darwin" else 1e6
    return {"commit": commit.stdout.strip() + mark, "device": device, "peak_memory_gb": round(used / unit, 2)}


def _figures(trained: Trained, split: Split, site: LocalSite) -> dict[str, np.ndarray]:
    import numpy as np

    from dusss_core.build import build_student
    from dusss_core.inference import predict_logits
    from dusss_core.models.weights import load_tensors
    from dusss_core.phases import Phase
    from dusss_core.runtime import runtime_of
    from dusss_core.text.bank import build_text_bank
    from dusss_core.training import text_guided_masks
    from dusss_core.training.evaluation import scores_of_logits

    config, device = trained.study.training(), site.device
    model = build_student(config).to(device)
    load_tensors(model, trained.student)
    runtime = runtime_of(config, Phase.SEGMENT, device)
    logits = predict_logits(model, split.images, config.image, device, runtime.eval_batch, amp=runtime.amp)
    figures = scores_of_logits(config, logits, split, distances=True).per_image()
    figures |= dict.fromkeys(("text_dice", "merged_dice"), np.full(len(split), np.nan))
    if trained.vlm is not None and split.has_text.any():
        bank = build_text_bank(split.sentences, config.vlm.text, site.text_cache, device)
        text = text_guided_masks(config, trained.vlm, split, bank, device)
        merged = [a.astype(np.float32) + b for a, b in zip(logits, text, strict=True)]
        for name, some in (("text_dice", list(text)), ("merged_dice", merged)):
            dice = scores_of_logits(config, some, split).per_image()["dice"]
            figures[name] = np.where(split.has_text, dice, np.nan)
    return figures
