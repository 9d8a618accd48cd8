"""Plain training without a federation: one trainer, its rounds in a row, no messages and nothing on disk between them.

It is what a federation is compared with, and what a federation of one site must equal bit for bit, with normalisation
layers that stay at the site (FedBN) too: their statistics are estimated and chosen as a site does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client.door.machine import resolve_device
from dusss_core.config import PersonalConfig, TrainingConfig
from dusss_core.files import with_prefix
from dusss_core.objectives import reads_sentences
from dusss_core.phases import Phase
from dusss_core.records import Split
from dusss_core.text.bank import TextBank, build_text_bank
from server.rounds.selection import NOTHING_TO_CHOOSE_BY, Selection
from server.runs.events import Reporter
from server.study.config import StudyConfig
from sites.config import load_site
from sites.dataset import SiteData

if TYPE_CHECKING:
    from torch import Tensor

    from dusss_core.training import Start


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


def load_local(site_file: Path, study: StudyConfig) -> LocalSite:
    """A site's data, prepared as the site itself prepares them."""
    site = load_site(site_file)
    data = SiteData(site, study.image)
    splits = {name: data.split(name) for name in ("train", "val", "test")}
    return LocalSite(site.site, splits, resolve_device(site.device), site.state_dir / "cache" / "text")


def why_no_student(study: StudyConfig, site: LocalSite) -> str | None:
    """Why `train_locally` would hand back the student that it began with; None: it trains one."""
    from dusss_core.training import can_train

    return can_train(_without_personal(study).training(), Phase.SEGMENT, site.splits["train"])


def train_locally(study: StudyConfig, site: LocalSite, reporter: Reporter | None = None) -> LocalResult:
    """Both phases at one site, with the study's rounds, early stopping and choice of the final model.

    A phase that the site cannot take part in is left out: without sentences there is no pretraining.

    Raises:
        UserError: the loss is not finite, ...
    """
    from dusss_core import training

    study = _without_personal(study)
    config = study.training()
    reporter = reporter or Reporter()
    train, val = site.splits["train"], site.splits["val"]
    text = _text(study, site)
    told = {"text": text} if reads_sentences(config) else {}
    common = {"device": site.device, "progress": lambda *step: reporter.on_site_step(site.name, *step)}
    result = LocalResult(student=training.initial_shared(study, Phase.SEGMENT))
    masks = text_dice = None
    for phase, rounds in study.phases().items():
        if training.can_train(config, phase, train) is not None:
            continue
        if phase == Phase.PRETRAIN:
            trainer = training.Pretrainer(config, site.name, train, val, text, **common)
        else:
            given = {"text_logits": masks, "text_dice": text_dice, **told}
            trainer = training.Segmenter(config, site.name, train, val, **given, **common)
        start = training.start_of(study, phase, result.vlm)
        model = _train_phase(study, phase, rounds, trainer, site, reporter, start)
        if phase == Phase.PRETRAIN:
            # text-guided masks come from the model with statistics that fit it, as at a site of a federation
            result.vlm = model = training.with_own_statistics(config, phase, model, train, text, site.device)
            if config.method.text_mask:
                masks = training.text_guided_masks(config, model, train, text, site.device)
                if config.method.judge_text:
                    text_dice = training.dice_of_text(config, model, val, text, site.device)
        else:
            result.student = training.at_its_best(config, model, train, val, site.device, told.get("text"))
    return result


def _without_personal(study: StudyConfig) -> StudyConfig:
    """There is one student, which is the site's own already."""
    return study.model_copy(update={"personal": PersonalConfig()})


def pool(name: str, sites: Sequence[LocalSite]) -> LocalSite:
    """All training and validation pictures of several sites as one site's; `test` is empty."""
    splits = {split: _pool_splits([(site.name, site.splits[split]) for site in sites]) for split in ("train", "val")}
    splits["test"] = splits["val"].select(np.array([], dtype=np.int64))
    return LocalSite(name, splits, sites[0].device, sites[0].text_cache)


def _train_phase(
    study: StudyConfig,
    phase: Phase,
    rounds: int,
    trainer,
    site: LocalSite,
    reporter: Reporter,
    start: Start,
) -> dict[str, Tensor]:
    n_val = int(site.splits["val"].masked.sum())
    selection = Selection(phase, phase.settings(study).patience)
    if start.layers:
        trainer.load_start(start.layers)
    trainer.load_shared(start.shared)
    last = best = _whole(trainer)
    reporter.on_phase(phase, rounds, 1)
    round = 0
    while round < rounds and not selection.exhausted:
        started, round = time.perf_counter(), round + 1
        reporter.on_round_start(phase, round, rounds, [site.name])
        reporter.on_site_start(site.name)
        metrics = _validate(trainer)
        best = _observe(selection, round - 1, n_val, metrics, last, best)
        metrics |= {f"train.{name}": value for name, value in trainer.train_round(round).items()}
        last = _whole(trainer)
        if study.local_norm:  # a federation's model arrives: statistics are estimated anew, also for validation
            trainer.load_shared(trainer.shared())
        reporter.on_site_done(site.name, metrics)
        reporter.on_round_end(phase, round, {**metrics, "seconds": time.perf_counter() - started}, selection.best_round)
    best = _observe(selection, round, n_val, _validate(trainer), last, best)
    use_best = study.federation.select != "last" and selection.chooses
    if study.federation.select != "last" and not selection.chooses:
        reporter.on_message(f"{phase}: {NOTHING_TO_CHOOSE_BY}")
    reporter.on_phase_end(phase, selection.best_round if use_best else round, f"{round} rounds trained")
    return best if use_best else last


def _validate(trainer) -> dict[str, float]:
    return {f"val.{name}": value for name, value in trainer.validate().items()}


def _observe(selection: Selection, round: int, n_val: int, metrics: dict[str, float], last, best):
    """The best model so far, after `metrics` of the model `last` of round `round`."""
    selection.observe(round, {"here": (n_val, metrics)})
    return last if selection.best_round == round else best


def told_on(config: TrainingConfig, site: LocalSite, sentences: Sequence[str]) -> TextBank | None:
    """Features of a split's sentences, for a student that is given them; None for any other."""
    if not reads_sentences(config):
        return None
    return build_text_bank(sentences, config.vlm.text, site.text_cache, site.device, augmented=False)


def _text(study: StudyConfig, site: LocalSite) -> TextBank | None:
    if Phase.PRETRAIN not in study.phases():
        return told_on(study.training(), site, site.splits["train"].sentences)
    if study.vlm.text.tuning != "frozen":
        return None
    return build_text_bank(site.splits["train"].sentences, study.vlm.text, site.text_cache, site.device)


def _whole(trainer) -> dict[str, Tensor]:
    """The model, with the normalisation layers that FedBN would keep at the site."""
    return {**trainer.shared(), **with_prefix(trainer.private(), "local.")}


def _pool_splits(parts: Sequence[tuple[str, Split]]) -> Split:
    sentences = tuple(sorted({sentence for _, split in parts for sentence in split.sentences}))
    number = {sentence: i for i, sentence in enumerate(sentences)}

    def renumber(split: Split) -> np.ndarray:
        table = np.array([*(number[sentence] for sentence in split.sentences), -1], dtype=np.int64)
        return table[split.all_sentences]  # -1, no text, reads the last entry

    splits = [split for _, split in parts]
    numbers = [renumber(split) for split in splits]
    most = max(rows.shape[1] for rows in numbers)
    numbers = np.concatenate([np.pad(r, [(0, 0), (0, most - r.shape[1])], constant_values=-1) for r in numbers])
    return Split(
        images=_concatenate([split.images for split in splits]),
        masks=_concatenate([split.masks for split in splits]),
        labelled=np.concatenate([split.labelled for split in splits]),
        masked=np.concatenate([split.masked for split in splits]),
        sentence=numbers[:, 0],
        sentences=sentences,
        ids=tuple(f"{name}/{identity}" for name, split in parts for identity in split.ids),
        more=numbers[:, 1:] if most > 1 else None,
    )


def _concatenate(arrays: Sequence):
    if all(isinstance(array, np.ndarray) for array in arrays):
        return np.concatenate(arrays)
    return [picture for array in arrays for picture in array]
