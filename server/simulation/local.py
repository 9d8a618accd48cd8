"""Plain training without a federation: one trainer, its rounds in a row, no messages and nothing on disk between them.

It is what a federation is compared with, and what a federation of one site must equal bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client.workbench import resolve_device
from dusss_core.config import TrainingConfig
from dusss_core.records import Split
from dusss_core.text import build_text_bank
from server.config import StudyConfig
from server.selection import Selection
from sites.config import load_site
from sites.dataset import SiteData

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class LocalSite:
    """The data of one site, or of several pooled."""

    name: str
    splits: dict[str, Split]
    device: str
    text_cache: Path | None


@dataclass
class LocalResult:
    """What plain training made."""

    student: dict[str, Tensor]
    vlm: dict[str, Tensor] | None = None
    rounds: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By phase: rounds trained, round of the final model, seconds."""


def load_local(site_file: Path, study: StudyConfig) -> LocalSite:
    """A site's data, prepared as the site itself prepares them."""
    site = load_site(site_file)
    data = SiteData(site, study.image)
    splits = {name: data.split(name) for name in ("train", "val", "test")}
    return LocalSite(site.site, splits, resolve_device(site.device), site.state_dir / "cache" / "text")


def train_locally(study: StudyConfig, site: LocalSite, *, progress: Progress | None = None,
                  on_phase: Callable[[str, int], None] | None = None,
                  on_round: Callable[[str, int, int, dict[str, float]], None] | None = None) -> LocalResult:
    """Both phases at one site, with the study's rounds, early stopping and choice of the final model.

    A phase that the site cannot take part in is left out: without sentences there is no pretraining.

    Args:
        on_phase: called when a phase begins, with its name and its rounds.
        on_round: called after each round with phase, round, rounds, metrics.

    Raises:
        UserError: the loss is not finite, ...
    """
    from dusss_core import training

    config = study.training()
    train = site.splits["train"]
    text = _text(config, site)
    common = {"device": site.device, "progress": progress}
    result = LocalResult({})
    masks = None
    for phase, rounds in study.phases().items():
        if training.can_train(config, phase, train) is not None:
            if phase == "segment":
                result.student = training.initial_shared(study, phase)
            continue
        if on_phase:
            on_phase(phase, rounds)
        if phase == "pretrain":
            trainer = training.Pretrainer(config, site.name, train, site.splits["val"], text, **common)
        else:
            trainer = training.Segmenter(config, site.name, train, site.splits["val"], text_logits=masks, **common)
        model, result.rounds[phase] = _train_phase(study, phase, rounds, trainer, int(site.splits["val"].masked.sum()),
                                                    on_round)
        if phase == "pretrain":
            result.vlm = model
            whole = {**model, **_local_layers(trainer)}
            masks = _masks(config, whole, train, text, site.device)
        else:
            result.student = {**model, **_local_layers(trainer)}
    return result


def pool(name: str, sites: Sequence[LocalSite]) -> LocalSite:
    """All training and validation pictures of several sites as one site's; `test` is empty."""
    splits = {split: _pool_splits([(site.name, site.splits[split]) for site in sites]) for split in ("train", "val")}
    splits["test"] = splits["val"].select(np.array([], dtype=np.int64))
    return LocalSite(name, splits, sites[0].device, sites[0].text_cache)


def _train_phase(study: StudyConfig, phase: str, rounds: int, trainer, n_val: int,
                 on_round) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from dusss_core.training import initial_shared

    started = time.perf_counter()
    selection = Selection(phase, getattr(study, phase).patience)
    last = best = initial_shared(study, phase)
    trainer.load_shared(last)
    round = 0

    def validate() -> dict[str, float]:
        return {f"val.{name}": value for name, value in trainer.validate().items()}

    while round < rounds and not selection.exhausted:
        round += 1
        metrics = validate()
        best = _observe(selection, round - 1, n_val, metrics, last, best)
        metrics |= {f"train.{name}": value for name, value in trainer.train_round(round).items()}
        last = trainer.shared()
        if on_round:
            on_round(phase, round, rounds, metrics)
    best = _observe(selection, round, n_val, validate(), last, best)
    use_best = study.federation.select == "best" and selection.best_round is not None
    figures = {"trained": round, "final": selection.best_round if use_best else round,
               "seconds": time.perf_counter() - started}
    return (best if use_best else last), figures


def _observe(selection: Selection, round: int, n_val: int, metrics: dict[str, float], last, best):
    """The best model so far, after `metrics` of the model `last` of round `round`."""
    selection.observe(round, [(n_val, metrics)])
    return last if selection.best_round == round else best


def _text(config: TrainingConfig, site: LocalSite):
    if not config.method.text_mask or config.vlm.text.tuning != "frozen":
        return None
    return build_text_bank(site.splits["train"].sentences, config.vlm.text, site.text_cache, site.device)


def _masks(config: TrainingConfig, vlm: dict[str, Tensor], train: Split, text, device: str) -> np.ndarray | None:
    from dusss_core.training import text_guided_masks

    return text_guided_masks(config, vlm, train, text, device) if train.has_text.any() else None


def _local_layers(trainer) -> dict[str, Tensor]:
    """The normalisation layers that FedBN would keep; without a federation they belong to the model."""
    return {name.removeprefix("local."): tensor for name, tensor in trainer.private().items()
            if name.startswith("local.")}


def _pool_splits(parts: Sequence[tuple[str, Split]]) -> Split:
    sentences = tuple(sorted({sentence for _, split in parts for sentence in split.sentences}))
    number = {sentence: i for i, sentence in enumerate(sentences)}

    def renumber(split: Split) -> np.ndarray:
        table = np.array([*(number[sentence] for sentence in split.sentences), -1], dtype=np.int64)
        return table[split.sentence]  # -1, no text, reads the last entry

    splits = [split for _, split in parts]
    return Split(
        images=_concatenate([split.images for split in splits]),
        masks=_concatenate([split.masks for split in splits]),
        labelled=np.concatenate([split.labelled for split in splits]),
        masked=np.concatenate([split.masked for split in splits]),
        sentence=np.concatenate([renumber(split) for split in splits]),
        sentences=sentences,
        ids=tuple(f"{name}/{identity}" for name, split in parts for identity in split.ids),
    )


def _concatenate(arrays: Sequence):
    if all(isinstance(array, np.ndarray) for array in arrays):
        return np.concatenate(arrays)
    return [picture for array in arrays for picture in array]
