"""Rounds of a cell of the accuracy grid's profile `gpu` at one site, within a limit of time, over several calls.

One site in setting `centralized` is the whole federation: each round it takes the global model, trains with the
project's trainers, and hands it back, which then is the next global model. The best round is chosen by validation
pictures; those of the test are read once, in the last call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.pieces import read_state, write_state
from benchmarks.gpu.timing import utilisation
from benchmarks.grid.cell import Cell
from dusss_core.config import merged
from dusss_core.phases import Phase

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from benchmarks.gpu.packed import Packed
    from dusss_core.config import TrainingConfig

SITE = "centralized"
_MARGIN = 0.97
"""Share of the time that rounds are planned for."""
_SAVE_EVERY_S = 120.0
_KNOWN_AFTER = 2
"""Rounds after which it is known how long one takes. The schedule has hardly begun; it is not planned anew later."""

Say = Callable[[str], None]


class Clock:
    """Seconds that are left of this call.

    Args:
        began: time.time() when the call began.
    """

    def __init__(self, minutes: float, began: float | None = None):
        self.minutes = minutes
        self._began = time.time() if began is None else began

    @property
    def passed(self) -> float:
        return time.time() - self._began

    @property
    def left(self) -> float:
        return 60 * self.minutes - self.passed


@dataclass
class Rounds:
    """One phase's rounds, as result.json keeps them."""

    planned: int
    best: int = 0
    best_dice: float = -1.0
    ended: bool = False
    """By the time of the last call."""
    lines: list[dict[str, float]] = field(default_factory=list)

    @property
    def done(self) -> int:
        return len(self.lines)

    @property
    def finished(self) -> bool:
        return self.ended or self.done >= self.planned

    def shares(self) -> dict[str, float]:
        """Of a round's time, the median over all but the first, which is slow: training, validation, and bookkeeping,
        which is taking the global model and handing the own one out; beside the seconds themselves."""
        lines = self.lines[1:] or self.lines
        parts = {"training": ("train_s",), "validation": ("validate_s",), "bookkeeping": ("load_s", "share_s")}
        found = {
            name: statistics.median([sum(line[key] for key in keys) / line["seconds"] for line in lines])
            for name, keys in parts.items()
        }
        found["seconds"] = statistics.median([line["seconds"] for line in lines])
        if all("gpu_percent" in line for line in lines):
            found["gpu_percent"] = statistics.median([line["gpu_percent"] for line in lines])
        return {name: round(value, 4) for name, value in found.items()}

    def seconds_per_round(self) -> float:
        """The median of the latest."""
        return statistics.median([line["seconds"] for line in self.lines[-5:]])


@dataclass
class Plan:
    """How the time is divided."""

    calls: int = 1
    """Over which the rounds are planned."""
    call: int = 1
    """Which of them this is."""
    later_minutes: float = 0.0
    """Of each later call."""
    pretraining: float = 0.33
    """Share of the training time for step 1."""
    test_s: float = 45.0
    """Seconds kept at the end of the last call, for the test and its files."""
    files_s: float = 15.0
    """Seconds kept at the end of any other call."""
    start_s: float = 45.0
    """Seconds of a later call before its training: packages, pictures, masks."""
    rounds: dict[str, int] | None = None
    """Rounds of each phase, in place of what the clock says; for a rehearsal."""
    rounds_per_call: int | None = None
    """Stop after so many, as if the time were over; for a rehearsal."""

    @property
    def last(self) -> bool:
        return self.call >= self.calls

    @property
    def kept_s(self) -> float:
        """Seconds that no round of this call may use."""
        return self.test_s if self.last else self.files_s

    def training_s(self, clock: Clock) -> float:
        """Seconds of training that are left in this call and those after it."""
        later = (self.calls - self.call) * (60 * self.later_minutes - self.start_s - self.test_s)
        return max(0.0, clock.left - self.kept_s) + max(0.0, later)


def settings(packed: Packed, folder: Path, method: str, labels: float, public_weights: bool) -> TrainingConfig:
    """The cell's settings, without text encoder.

    Args:
        folder: that of `Packed.unpack`.
        public_weights: the image encoder of step 1 is the pack's, with public weights, in place of the profile's.
    """
    from benchmarks.gpu.packed import ENCODER
    from benchmarks.grid.methods.presets import METHODS
    from dusss_core.config import TrainingConfig
    from dusss_core.models.public_weights import IMAGENET_ENCODER

    cell = Cell("qata", labels, method, SITE, "gpu", packed.seed)
    # on CUDA auto is what the profile says, and cuDNN may try which of its kernels is the fastest
    values = {**cell.values(METHODS[method]), "runtime": "auto"}
    if public_weights:
        own = {"image_encoder": IMAGENET_ENCODER, "weights": str(packed.folder / ENCODER)}
        values = merged(values, {"vlm": own})
    return packed.settle(TrainingConfig.model_validate(values), folder)


class Training:
    """Both phases of one cell.

    Args:
        splits, text: what `Packed` reads.
        record: the part of result.json that this keeps up to date: "phases", "state", "seconds".
        save: writes result.json.
        out: folder of the state's pieces.
    """

    def __init__(
        self,
        config: TrainingConfig,
        splits: dict[str, Any],
        text: Any,
        device: torch.device,
        clock: Clock,
        plan: Plan,
        record: dict[str, Any],
        save: Callable[[], None],
        out: Path,
        say: Say,
    ):
        self.config, self.splits, self.text, self.device = config, splits, text, device
        self.clock, self.plan, self.record, self.save, self.out, self.say = clock, plan, record, save, out, say
        self.phases = [Phase.PRETRAIN, Phase.SEGMENT] if config.method.text_mask else [Phase.SEGMENT]
        self.rounds = {name: Rounds(**values) for name, values in record.get("phases", {}).items()}
        self.state: dict[str, dict[str, Tensor]] = {}
        self.most = {phase: getattr(config, phase).rounds for phase in self.phases}
        """The profile's rounds."""
        self.made = 0
        """Rounds of this call."""
        self._saved = clock.passed

    def resume(self, folder: Path) -> None:
        """Take the state that an earlier call left in `folder`."""
        self.state = read_state(folder, self.record["state"])

    def run(self) -> bool:
        """Train until the rounds are done or the time is over. Returns whether no later call has to go on."""
        for phase in self.phases:
            rounds = self.rounds.get(phase)
            if rounds is not None and rounds.finished:
                continue
            if not self._may_begin() or not self._train(phase):
                return False
        return True

    # ---- one phase ----

    def _train(self, phase: Phase) -> bool:
        """Rounds of one phase; False where the call ends before they are done."""
        trainer = self._trainer(phase)
        rounds = self.rounds.get(phase)
        if rounds is None:
            rounds = self.rounds[phase] = Rounds((self.plan.rounds or self.most)[phase])
            shared = trainer.shared()
        else:
            trainer.load_private(self.state["private"])
            shared = self.state["now"]
        trainer.settings.rounds = rounds.planned
        best = self.state.get("best", shared)
        left = self.clock.left - self.plan.kept_s
        end = self.clock.passed + left * (self.plan.pretraining if phase == Phase.PRETRAIN and self.plan.last else 1.0)

        while not rounds.finished and self._fits(rounds, end):
            shared, line = self._round(trainer, shared, rounds.done + 1)
            rounds.lines.append(line)
            if line["val_dice"] >= rounds.best_dice:
                rounds.best, rounds.best_dice, best = rounds.done, line["val_dice"], shared
            self.made += 1
            self._plan_anew(phase, rounds)
            trainer.settings.rounds = rounds.planned
            self.say(
                f"{phase} {rounds.done}/{rounds.planned}: loss {line['loss']:.4f}, "
                f"validation Dice {line['val_dice']:.4f} ({line['seconds']:.1f} s, {line['train_s']:.1f} s training)"
            )
            if self.clock.passed - self._saved > _SAVE_EVERY_S:
                self._keep(trainer, shared, best, rounds)
        if rounds.finished or self.plan.last:
            name = "vlm" if phase == Phase.PRETRAIN else "student"
            self.state = {**{k: v for k, v in self.state.items() if k == "vlm"}, name: best}
            rounds.ended = True
            self._write()
            return True
        self._keep(trainer, shared, best, rounds)
        return False

    def _trainer(self, phase: Phase) -> Any:
        from dusss_core.training import Pretrainer, Segmenter, text_guided_masks

        train, val = self.splits["train"], self.splits["val"]
        if phase == Phase.PRETRAIN:
            trainer = Pretrainer(self.config, SITE, train, val, self.text, device=self.device)
        else:
            masks = None
            if "vlm" in self.state:
                began = time.monotonic()
                masks = text_guided_masks(self.config, self.state["vlm"], train, self.text, self.device)
                self.record["text_guided_masks"] = {
                    "dice": hidden_dice(self.config, masks, train),
                    "seconds": round(time.monotonic() - began, 2),
                }
                self.say(f"text-guided masks: {self.record['text_guided_masks']}")
            trainer = Segmenter(self.config, SITE, train, val, text_logits=masks, text=self.text, device=self.device)
        return trainer

    def _round(self, trainer: Any, shared: dict[str, Tensor], round: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        """As a site does: load, train, share, validate. Returns what it shares, and the figures."""
        parts = {}
        began = last = time.monotonic()

        def took(name: str) -> None:
            nonlocal last
            synchronise(self.device)
            now = time.monotonic()
            parts[name], last = now - last, now

        with utilisation(self.device) as busy:
            trainer.load_shared(shared)
            took("load_s")
            figures = trainer.train_round(round)
            took("train_s")
            shared = trainer.shared()
            took("share_s")
            figures |= {f"val_{name}": value for name, value in trainer.validate().items()}
            took("validate_s")
        figures |= parts | {"seconds": last - began}
        if busy:
            figures["gpu_percent"] = statistics.fmean(busy)
        return shared, {name: float(f"{value:.6g}") for name, value in figures.items()}

    def _may_begin(self) -> bool:
        """Whether the masks and a first round, which is slow, still fit; the last call trains one in any case."""
        before = [rounds.seconds_per_round() for rounds in self.rounds.values()]
        return self.plan.last or not before or self.clock.left - self.plan.kept_s > 6 * before[-1]

    def _fits(self, rounds: Rounds, end: float) -> bool:
        if self.plan.rounds_per_call is not None and self.made >= self.plan.rounds_per_call:
            return False
        if self.plan.rounds is not None or not rounds.done:
            return True
        return self.clock.passed + 1.05 * rounds.seconds_per_round() < end

    def _plan_anew(self, phase: Phase, rounds: Rounds) -> None:
        """As many rounds as fit, and no more than the profile's: settled once it is known how long one takes."""
        if self.plan.rounds is not None or rounds.done > _KNOWN_AFTER:
            return
        left = self.plan.training_s(self.clock)
        if phase == Phase.PRETRAIN:  # of all the training time, what its rounds took so far included
            spent = sum(line["seconds"] for line in rounds.lines)
            left = self.plan.pretraining * (left + spent) - spent
        more = int(_MARGIN * left / rounds.lines[-1]["seconds"])
        # a first round is slow, and must not be the measure of all
        fewest = int(rounds.done < _KNOWN_AFTER)
        rounds.planned = min(self.most[phase], rounds.done + max(fewest, more))

    # ---- what is kept ----

    def _keep(self, trainer: Any, shared: dict[str, Tensor], best: dict[str, Tensor], rounds: Rounds) -> None:
        """So that a later call goes on from here."""
        own = {"now": shared, "private": trainer.private(), **({} if rounds.best == rounds.done else {"best": best})}
        self.state = {**{k: v for k, v in self.state.items() if k == "vlm"}, **own}
        self._write()

    def _write(self) -> None:
        began = time.monotonic()
        self.record["state"] = write_state(self.out, self.state)
        self.record["phases"] = {str(phase): asdict(rounds) for phase, rounds in self.rounds.items()}
        self.save()
        self._saved = self.clock.passed
        about, took = self.record["state"], time.monotonic() - began
        self.say(f"state: {about['pieces']} pieces, {about['rounding']}, written in {took:.1f} s")


def test(
    config: TrainingConfig, state: dict[str, dict[str, Tensor]], split: Any, text: Any, device: Any
) -> dict[str, Any]:
    """Figures on the official test pictures, named as the accuracy grid's files do: the student, which sees the picture
    alone, the text-guided mask, and the sum of both logits; or a student that is given sentences, with them."""
    import numpy as np

    from dusss_core.build import build_student
    from dusss_core.inference import predict_logits
    from dusss_core.models.weights import load_tensors
    from dusss_core.objectives import reads_sentences
    from dusss_core.runtime import runtime_of
    from dusss_core.training import text_guided_masks, told_logits
    from dusss_core.training.evaluation import scores_of_logits

    runtime = runtime_of(config, Phase.SEGMENT, device)
    model = build_student(config).to(device, memory_format=runtime.memory_format)
    load_tensors(model, state["student"])
    logits = predict_logits(model, split.images, config.image, device, runtime.eval_batch, amp=runtime.amp)
    single = scores_of_logits(config, logits, split).per_image()
    found = {
        "test": {"dice": _rounded(single["dice"]), "iou": _rounded(single["iou"]), "n": len(split)},
        "test_dice_per_picture": [int(value) for value in np.rint(1000 * single["dice"])],
    }
    if reads_sentences(config):
        told = told_logits(config, model, split, text, device)
        found["with_sentence"] = {"dice": _rounded(scores_of_logits(config, told, split).per_image()["dice"])}
    if "vlm" in state:
        guided = text_guided_masks(config, state["vlm"], split, text, device)
        for name, some in (("text_mask", guided), ("with_sentence", logits.astype(np.float32) + guided)):
            keep = split.has_text.nonzero()[0]
            dice = scores_of_logits(config, some[keep], split.select(keep)).per_image()["dice"]
            found[name] = {"dice": _rounded(dice)}
    return found


def hidden_dice(config: TrainingConfig, logits: Any, split: Any) -> float | None:
    """Of text-guided masks on the training pictures whose mask is not trained on; None where there are none."""
    from dusss_core.training.evaluation import scores_of_logits

    rest = (~split.labelled & split.has_text).nonzero()[0]
    return (
        _rounded(scores_of_logits(config, logits[rest], split.select(rest)).per_image()["dice"]) if len(rest) else None
    )


def _rounded(values: Any) -> float:
    return round(float(values.mean()), 4)


def synchronise(device: Any) -> None:
    """Wait for the GPU; nothing on a CPU."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
