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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.grid.cell import Cell
from benchmarks.grid.hospitals import partition_of
from benchmarks.grid.measures import PERSONAL, STUDENT, TEXT_MASK, WITH_SENTENCE, Figures, count_pixels
from dusss_core.config import merged
from dusss_core.errors import UserError
from feddusss import configfile
from server.runs.events import PlainReporter
from server.study.config import StudyConfig

if TYPE_CHECKING:
    from torch import Tensor

    from dusss_core.config import TrainingConfig
    from dusss_core.records import Split
    from dusss_core.training.evaluation import Logits
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
        """The cell's study with the method's `changes`, key by key."""
        return make_study(self.cell, self.data_root, self.overrides, changes)


class Kept(NamedTuple):
    """A site's models, whole."""

    student: dict[str, Tensor]
    vlm: dict[str, Tensor] | None


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
    personal: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    """By site: the student that is its own, whole."""
    kept: Mapping[str, Kept] = field(default_factory=dict)
    """By site: its models with the normalisation layers that stay there (`local_norm`), whole."""

    def student_at(self, site: str) -> dict[str, Tensor]:
        """What of the federation is tested at a site: the shared student, with what of its layers the site keeps.

        Raises:
            UserError: the site has no such layers.
        """
        if self.study.personal.own_head != "none":
            if site not in self.personal:
                raise UserError(
                    f"{site}: the student has no head there", "choose another `personal`, or another data set"
                )
            return self.personal[site]
        if not self.study.local_norm:
            return self.student
        if site not in self.kept:
            raise UserError(f"{site}: the student has no normalisation layers there", "leave out local_norm")
        return self.kept[site].student

    def vlm_at(self, site: str) -> dict[str, Tensor] | None:
        """The vision-language model that is tested at a site; None where there is none."""
        if self.vlm is None or not self.study.local_norm:
            return self.vlm
        return self.kept[site].vlm if site in self.kept else None


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
    values = {**cell.values(changes or {}), "data": {"root": str(data_root)}}
    values = merged(values, {"simulation": simulation})
    return configfile.parse(StudyConfig, values, f"the study of {cell.name}", overrides)


def figures_on(split: str, trained: Trained, sites: Sequence[Path]) -> dict[str, dict[str, Figures]]:
    """Figures of each picture with a mask in the sites' `split`: by site, and there by whose masks they are. "hd95" is
    the student's on test pictures alone; text-guided masks and sums are those of the pictures with a sentence, and of
    methods that have a vision-language model. Of a student that is given sentences WITH_SENTENCE is its own answer to
    both, on all pictures: to the picture alone where there is no sentence."""
    from server.simulation.local import load_local

    found = {}
    for file in sites:
        site = load_local(file, trained.study)
        pictures = site.splits[split].select(site.splits[split].masked.nonzero()[0])
        if len(pictures):
            found[site.name] = _figures(trained, pictures, site, distances=split == "test")
    return found


def personal_students(study: StudyConfig, folder: Path, sites: Sequence[Path]) -> dict[str, dict[str, Tensor]]:
    """The students that the sites of the run in `folder` keep as their own, by site."""
    import json

    from client.state.store import SiteState
    from sites.config import load_site

    if study.personal.kind == "none":
        return {}
    run_key = json.loads((folder / "run.json").read_text(encoding="utf-8"))["run_key"]
    kept = {site.site: SiteState(site.state_dir, study.study, run_key).personal() for site in map(load_site, sites)}
    return {name: own[0] for name, own in kept.items() if own is not None}


def models_at_sites(study: StudyConfig, folder: Path) -> dict[str, Kept]:
    """The models that the sites of the run in `folder` have where normalisation layers stay with them, by site."""
    from dusss_core.student import read_student, read_vlm, students_in, vlm_path
    from server.runs.students import STUDENTS

    if not study.local_norm:
        return {}
    return {
        file.stem: Kept(read_student(file)[1], read_vlm(vlm_path(file))[1] if vlm_path(file).is_file() else None)
        for file in students_in(folder / STUDENTS)
    }


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


def _figures(trained: Trained, split: Split, site: LocalSite, *, distances: bool) -> dict[str, Figures]:
    from dusss_core.build import build_student
    from dusss_core.inference import predict_logits
    from dusss_core.models.weights import load_tensors
    from dusss_core.phases import Phase
    from dusss_core.runtime import runtime_of
    from dusss_core.text.bank import build_text_bank
    from dusss_core.training import text_guided_masks, told_logits
    from server.simulation.local import told_on

    config, device = trained.study.training(), site.device
    model = build_student(config).to(device)
    runtime = runtime_of(config, Phase.SEGMENT, device)

    def logits_of(student: dict[str, Tensor]) -> Logits:
        load_tensors(model, student)
        return predict_logits(model, split.images, config.image, device, runtime.eval_batch, amp=runtime.amp)

    logits = logits_of(trained.student_at(site.name))
    figures = {STUDENT: _measured(config, logits, split, distances=distances)}
    if site.name in trained.personal:
        own = logits_of(trained.personal[site.name])
        figures[PERSONAL] = _measured(config, own, split, distances=distances)
    if (bank := told_on(config, site, split.sentences)) is not None:
        figures[WITH_SENTENCE] = _measured(config, told_logits(config, model, split, bank, device), split)
        return figures
    told = split.has_text.nonzero()[0]
    vlm = trained.vlm_at(site.name)
    if vlm is not None and len(told):
        split = split.select(told)
        bank = build_text_bank(split.sentences, config.vlm.text, site.text_cache, device)
        text = text_guided_masks(config, vlm, split, bank, device)
        merged = [logits[i].astype("float32") + z for i, z in zip(told, text, strict=True)]
        figures |= {
            name: _measured(config, some, split) for name, some in ((TEXT_MASK, list(text)), (WITH_SENTENCE, merged))
        }
    return figures


def _measured(config: TrainingConfig, logits: Logits, split: Split, *, distances: bool = False) -> Figures:
    import numpy as np

    from dusss_core.metrics import to_classes
    from dusss_core.training.evaluation import scores_of_logits

    counted = [count_pixels(to_classes(z), np.asarray(mask)) for z, mask in zip(logits, split.masks, strict=True)]
    return {
        "id": np.array(split.ids),
        **scores_of_logits(config, logits, split, distances=distances).per_image(),
        **{name: np.array([one[name] for one in counted]) for name in counted[0]},
    }
