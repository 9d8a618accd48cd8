"""What a site builds before it can work: data, token features, trainers, text-guided masks.

A process that answers many messages (the simulation, a warm worker) keeps workbenches between messages, as long as
there is memory for them. That saves time and changes no bit: whatever a message needs that is not here, or is not of
the right round, is read from disk. Where many sites share a process, those without a trainer of their own share one: it
is handed on from site to site, and each site's private state comes from the disk.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from client.declined import Declined
from client.door.machine import free_memory, resolve_device
from client.door.request import Judged
from client.work import observe
from dusss_core import training
from dusss_core.files import digest_of_tensors, write_atomically
from dusss_core.objectives import reads_sentences
from dusss_core.phases import Phase
from dusss_core.records import Split
from dusss_core.sampling import steps_per_epoch
from dusss_core.text.bank import build_text_bank
from dusss_core.training.judging import SHARE
from sites.config import LimitsConfig
from sites.dataset import SiteData

if TYPE_CHECKING:
    from torch import Tensor

    from dusss_core.config import TrainingConfig
    from dusss_core.training.trainer import PhaseTrainer

KEPT_SHARE = 1 / 8
"""Of the memory that this process could have if it kept nothing, main or the GPU's: what is kept between messages takes
no more."""
_RECORD_BYTES = 1000
"""What a line of the manifest takes, about."""
_kept: OrderedDict[tuple, Workbench] = OrderedDict()
"""The last one is that of the last message."""


def workbench(request: Judged) -> Workbench:
    """The workbench for a site and the settings of a message: a kept one if nothing changed, else a new one.

    Raises:
        UserError: mistakes in the manifest; the site's device is not on this machine.
    """
    file, manifest = request.site_file, request.site.data.manifest
    key = (str(file.resolve()), _stamp(file), _stamp(manifest), request.training_digest)
    bench = _kept.pop(key, None)
    _drop_oldest(key[0], but=request.site.limits.kept_workbenches - 1)
    heir_of = _make_room(request)
    if bench is None:
        bench = Workbench(request)
    bench.heir_of = heir_of
    _kept[key] = bench
    return bench


def _drop_oldest(site_file: str, but: int) -> None:
    """Drop a site's workbenches down to the `but` newest: settings that a coordinator makes up are without end."""
    own = [key for key in _kept if key[0] == site_file]
    for key in own[: max(0, len(own) - but)]:
        del _kept[key]


def _make_room(request: Judged) -> _Seat | None:
    """Drop what there is no memory for: first trainers, then whole workbenches.

    Those of other settings go first, the oldest before the others. Sites that take turns come back in the order in
    which they went, so of those with the same settings the newest goes first: it is the one that is wanted last.

    Returns:
        A dropped trainer of the same settings.
    """
    if not _kept:
        return None
    next(reversed(_kept.values())).weigh()
    excess = _Excess(request.site.limits)
    others = [key for key in _kept if key[-1] != request.training_digest]
    order = others + [key for key in reversed(_kept) if key[-1] == request.training_digest]
    dropped = None
    for key in order:
        bench = _kept[key]
        if bench.seat is not None and excess.on(bench.device) > 0:
            dropped = bench.seat if key not in others else None
            excess.less(bench.device, bench.weight)
            bench.seat, bench.trainer_at, bench.weight = None, None, 0
    for key in order:
        if excess.on("cpu") > 0:
            excess.less("cpu", _kept.pop(key).kept_on("cpu"))
    return dropped


class _Excess:
    """By how much what is kept on a device goes beyond its share, in bytes."""

    def __init__(self, limits: LimitsConfig):
        self._limits = limits
        self._on: dict[str, float] = {}

    def on(self, device: str) -> float:
        if device not in self._on:
            kept = sum(bench.kept_on(device) for bench in _kept.values())
            self._on[device] = kept - KEPT_SHARE * (free_memory(device, self._limits) + kept) if kept else 0.0
        return self._on[device]

    def less(self, device: str, dropped: int) -> None:
        """So much was dropped there."""
        self._on[device] = self.on(device) - dropped


def forget() -> None:
    """Drop every kept workbench."""
    _kept.clear()


class _Seat(NamedTuple):
    """A trainer, and what it was built for."""

    phase: Phase
    masks: str
    """Names the text-guided masks that it was given; empty: none."""
    device: str
    trainer: PhaseTrainer


class Workbench:
    """One site's data and trainers at one study's settings.

    Args:
        request: a message with the site and the settings; what the site allows holds for all others that have the same.
    """

    def __init__(self, request: Judged):
        self.site = request.site
        self.config = request.training
        self.device = resolve_device(self.site.device)
        self.data = SiteData(self.site, self.config.image)
        self.trainer_at: tuple[str, Phase, int] | None = None
        """Run, phase and round whose private state the trainer holds; None: it may be in the middle of a round."""
        self._allowed = request.allowed
        self._splits: dict[str, Split] = {}
        self._masks: tuple[tuple[str, str], str, np.ndarray] | None = None
        self._text_dice: tuple[tuple[str, str], np.ndarray] | None = None
        self.seat: _Seat | None = None
        self.heir_of: _Seat | None = None
        """Another site's trainer, which that one gave up, for this one to take over."""
        self.weight = 0
        """Bytes of the trainer, when the site was last at work."""
        self._data_weight = 0

    def split(self, name: str) -> Split:
        """A split of the site's data."""
        if name not in self._splits:
            self._splits[name] = self.data.split(name)
        return self._splits[name]

    @cached_property
    def text(self):
        """Token features of the site's sentences; None where the text encoder is trained along.

        Raises:
            Declined: the site does not allow the text encoder, or a vision-language model of this size.
        """
        self._allowed.language()
        if self.config.vlm.text.tuning != "frozen":
            return None
        cache = self.site.state_dir / "cache" / "text"
        return build_text_bank(self.data.sentences, self.config.vlm.text, cache, self.device)

    @property
    def told(self):
        """Token features of the site's sentences, for a student that is given them; None for any other.

        Raises:
            Declined: as `text`.
        """
        return self.text if reads_sentences(self.config) else None

    def trainer(self, request: Judged):
        """The phase's trainer with the site's private state of the newest round before `request.round`.

        A site without such state (its first round, or a lost disk) starts afresh. Whoever leaves the trainer with the
        private state of some round says so in `trainer_at`.

        Returns:
            The trainer, and the round of the private state (0: none).
        """
        phase, state = request.phase, request.state
        round = state.newest_round(phase, request.round)
        wanted = (request.run_key, phase, round or 0)
        masks = self._training_masks(request) if phase.takes_masks else None
        masks_key = self._masks[1] if masks is not None else ""
        if self.seat is None or self.seat[:2] != (phase, masks_key) or round is None:
            # also without a state: a used trainer still has moments, a step count and a teacher
            heir_of = self.heir_of if round is not None else None
            text_dice = self.text_dice(request) if masks is not None else None
            self.seat = _Seat(phase, masks_key, self.device, self._build_trainer(phase, masks, text_dice, heir_of))
            self.trainer_at = None
        self.heir_of = None
        if round is not None and self.trainer_at != wanted:
            self.seat.trainer.load_private(state.newest(phase, request.round)[0])
        self.trainer_at = None
        return self.seat.trainer, round or 0

    def eval_batch(self, phase: Phase) -> int:
        """Pictures that are evaluated at a time on this site's device."""
        from dusss_core.runtime import runtime_of

        return runtime_of(self.config, phase, self.device).eval_batch

    def weigh(self) -> None:
        """Note how much memory this workbench takes."""
        self.heir_of = None
        self.weight = sum(tensor.nbytes for tensor in self.seat.trainer.kept()) if self.seat is not None else 0
        arrays = [array for split in self._splits.values() for array in (*_arrays(split.images), *_arrays(split.masks))]
        # what is mapped from a file can be dropped by the system at any time
        in_memory = sum(array.nbytes for array in arrays if not isinstance(array, np.memmap))
        features = getattr(self.__dict__.get("text"), "nbytes", 0)
        self._data_weight = in_memory + features + _RECORD_BYTES * len(self.data.records)

    def kept_on(self, device: str) -> int:
        """Bytes that this workbench keeps on `device`, when it was last weighed."""
        return (self.weight if device == self.device else 0) + (self._data_weight if device == "cpu" else 0)

    def text_masks(self, request: Judged) -> np.ndarray | None:
        """Text-guided masks of the training pictures as logits, made once per VLM and data; None without text.

        Raises:
            Declined: the site has not been given the VLM.
        """
        train = self.split("train")
        if not request.vlm_digest or not train.has_text.any():
            return None
        if not isinstance(train.images, np.ndarray):
            return None
        made_for = (request.run_key, request.vlm_digest)
        if self._masks is None or self._masks[0] != made_for:
            vlm = self.vlm(request)
            key = _digest(self.config.model_dump_json(), digest_of_tensors(vlm), _digest_of_split(train))

            def made() -> np.ndarray:
                return training.text_guided_masks(self.config, vlm, train, self.text, self.device)

            self._masks = (made_for, key, _kept_file(request.state.folder, "text-masks", key, made))
        return self._masks[2]

    def text_dice(self, request: Judged) -> np.ndarray | None:
        """Dice of the text-guided mask of each validation picture, by which `method.judge_text` weighs those of the
        training pictures; None where these are not judged: of a site with a privacy budget nothing leaves unpaid that
        follows from its validation pictures.

        Raises:
            Declined: the site has not been given the VLM.
        """
        paid, val = self.site.privacy.epsilon is not None, self.split("val")
        if paid or not self.config.method.judge_text or not (val.masked & val.has_text).any():
            return None
        made_for = (request.run_key, request.vlm_digest)
        if self._text_dice is None or self._text_dice[0] != made_for:
            vlm = self.vlm(request)
            key = _digest(self.config.model_dump_json(), digest_of_tensors(vlm), _digest_of_split(val, masks=True))

            def made() -> np.ndarray:
                return training.dice_of_text(self.config, vlm, val, self.text, self.device)

            self._text_dice = made_for, _kept_file(request.state.folder, "text-dice", key, made)
        return self._text_dice[1]

    def vlm(self, request: Judged) -> dict[str, Tensor]:
        """The whole final VLM; under FedBN with this site's own normalisation layers of the same round.

        Raises:
            Declined: the site has not been given the VLM.
        """
        shared = request.state.vlm(request.vlm_digest)
        if shared is None:
            raise Declined("this site has not been given the vision-language model")
        local = request.state.local_layers(Phase.PRETRAIN, request.vlm_round)
        if not local:
            return shared
        whole = {**shared, **local}
        return training.with_own_statistics(
            self.config, Phase.PRETRAIN, whole, self.split("train"), self.text, self.device
        )

    def fine_tuned(
        self, request: Judged, student: dict[str, Tensor], plain: TrainingConfig | None = None, shared_by: int = 1
    ) -> dict[str, Tensor]:
        """The final student, whole, after this site's own steps on it: no more than it allows in a round.

        Args:
            plain: these settings in place of the study's, and no text-guided masks.
            shared_by: so many students share the steps that the site allows.

        Raises:
            Declined: the site's hours are over; it has not been given the VLM.
            NotFinite: the loss is not finite.
        """
        limits, train = self.site.limits, self.split("train")
        judged = (request.state.newest(Phase.SEGMENT, before=10**9) or ({},))[0]
        passes = limits.max_epochs_per_round * steps_per_epoch(len(train), self.config.segment.batch)
        return training.fine_tuned(
            plain or self.config,
            self.site.site,
            train,
            student,
            val=self.split("val"),
            most_steps=min(passes, limits.max_steps_per_round or passes) // shared_by,
            text_logits=None if plain else self._training_masks(request),
            text_share=float(judged.get(f"judge.{SHARE}", 1.0)),
            text=self.told,
            device=self.device,
            progress=self._step_made,
        )

    def _training_masks(self, request: Judged) -> np.ndarray | None:
        return self.text_masks(request) if self.config.method.text_mask else None

    def _build_trainer(
        self, phase: Phase, masks: np.ndarray | None, text_dice: np.ndarray | None, heir_of: _Seat | None
    ):
        train, val = self.split("train"), self.split("val")
        common = {"device": self.device, "progress": self._step_made}
        segmenter = training.Segmenter if self.config.personal.kind == "none" else training.PersonalSegmenter
        kind = {Phase.PRETRAIN: training.Pretrainer, Phase.SEGMENT: segmenter}[phase]
        if self.site.privacy.epsilon is not None:
            kind, common = _private(phase), {**common, "records": self.site.privacy.records}
        elif heir_of is not None and (heir_of.phase, heir_of.device) == (phase, self.device):
            # but a text encoder that is trained along has made the features of the other site's sentences
            common["heir_of"] = heir_of.trainer if not phase.reads_sentences or self.text is not None else None
        if phase.reads_sentences:
            return kind(self.config, self.site.site, train, val, self.text, **common)
        if (told := self.told) is not None:
            common["text"] = told
        return kind(self.config, self.site.site, train, val, text_logits=masks, text_dice=text_dice, **common)

    def _step_made(self, step: int, steps: int, loss: float) -> None:
        """After each step: breaks the round off when the site's hours are over."""
        self._allowed.still()
        observe.step_made(step, steps, loss)


def _private(phase: Phase):
    """The trainer of a phase for a site that asks for differential privacy."""
    from dusss_core.privacy.pretrain import PrivatePretrainer
    from dusss_core.privacy.segment import PrivateSegmenter

    return {Phase.PRETRAIN: PrivatePretrainer, Phase.SEGMENT: PrivateSegmenter}[phase]


def _arrays(images: np.ndarray | Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    return (images,) if isinstance(images, np.ndarray) else images


def _kept_file(folder: Path, kind: str, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What `make` gives, made once for a key: it lies in `folder`, in place of that of an earlier key."""
    path = folder / f"{kind}-{key}.npy"
    if not path.is_file():
        array = make()
        write_atomically(path, lambda temporary: _save(temporary, array), size=array.nbytes)
        for other in folder.glob(f"{kind}-*.npy"):
            if other != path:
                other.unlink()
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError):  # damaged since: what it was made of is still there
        path.unlink()
        return _kept_file(folder, kind, key, make)


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _digest_of_split(split: Split, *, masks: bool = False) -> str:
    digest = hashlib.sha256()
    for array in (*_arrays(split.images), *(_arrays(split.masks) if masks else ()), split.sentence):
        digest.update(np.ascontiguousarray(array))
    return _digest(digest.hexdigest(), *split.sentences)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = Path(path).stat()
    except OSError:
        return (0, 0)
    return status.st_mtime_ns, status.st_size
