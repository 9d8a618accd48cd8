"""Step 2: trains the student. What it learns from is the objective's to say; this is the objective's host."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dusss_core.augment import Geometry
from dusss_core.build import build_student
from dusss_core.config import MethodConfig, PersonalConfig, TrainingConfig
from dusss_core.files import with_prefix
from dusss_core.models.batch_norm import lone_value_told
from dusss_core.models.weights import load_tensors, on_cpu
from dusss_core.models.words import Words
from dusss_core.objectives import objective_of, reads_sentences
from dusss_core.objectives.objective import Batch, Values
from dusss_core.phases import Phase
from dusss_core.records import Split
from dusss_core.text.bank import TextBank
from dusss_core.training.evaluation import score_model
from dusss_core.training.judging import Judge
from dusss_core.training.resident import Resident
from dusss_core.training.sharing import handed_on
from dusss_core.training.statistics import estimate_statistics
from dusss_core.training.trainer import PhaseTrainer, Progress

OUTSIDE = -8.0
"""Mask logit of a finding where a shifted or turned picture shows nothing: that is background."""


class Segmenter(PhaseTrainer):
    """Trains the student on a site's labelled and unlabelled pictures, by the study's `method.objective`.

    Args:
        text_logits: N x outputs x H x W, float16, text-guided masks of the training split as logits, NaN for records
            without text; None where the method or the site has none.
        text_dice: Dice of the text-guided masks of the validation split (`judging.dice_of_text`), by which
            `method.judge_text` weighs them; None: they weigh in full.
        text: features of the site's sentences; needed where the student is given them
            (`dusss_core.objectives.reads_sentences`), elsewhere not looked at.
    """

    phase = Phase.SEGMENT

    def __init__(
        self,
        config: TrainingConfig,
        site: str,
        train: Split,
        val: Split,
        *,
        text_logits: np.ndarray | None = None,
        text_dice: np.ndarray | None = None,
        text: TextBank | None = None,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
        heir_of: Segmenter | None = None,
    ):
        super().__init__(
            config,
            config.segment,
            site,
            build_student(config) if heir_of is None else heir_of.student,
            train,
            val,
            device,
            progress,
            usable=len(train),
            heir_of=heir_of,
        )
        self.student = self.model
        self.text = text if reads_sentences(config) else None
        self.text_logits = text_logits if config.method.text_mask else None
        guided = ~np.isnan(text_logits[:, 0, 0, 0]) if self.text_logits is not None else np.zeros(len(train), bool)
        self.guided = guided
        self.labelled = np.flatnonzero(train.labelled)
        kind = objective_of(config)
        teaches = {"all": True, "with_text": guided, "none": False}[kind.learns_from(config)]
        self.unlabelled = np.flatnonzero(~train.labelled & teaches)
        self.handed_on = handed_on(config, self.phase, len(self.labelled))
        self.objective = kind(self) if heir_of is None else heir_of.objective
        self.objective.host = self
        self.spare_steps: int | None = None
        """Steps that the site allows the plain student, which are made beside the round's own; None: no limit."""
        self.judge: Judge | None = None
        if text_dice is not None and not np.isnan(text_dice).all() and config.method.judge_text and guided.any():
            self.judge = Judge(config, val, text_dice, self.device)

    def kept(self) -> Iterator[Tensor]:
        yield from super().kept()
        yield from self.objective.kept()

    def load_shared(self, tensors: dict[str, Tensor]) -> None:
        super().load_shared(tensors)
        if self.step == 0:
            self.objective.start()

    def train_round(self, round: int) -> dict[str, float]:
        judged = self.judge_text(round)
        self.begin_round(round)
        self.objective.before_round()
        return {**super().train_round(round), **judged}

    def begin_round(self, round: int) -> None:
        """A round begins; what text-guided masks weigh in it is known."""

    @property
    def text_share(self) -> float:
        """What text-guided masks weigh at this site, in [0, 1]."""
        return 1.0 if self.judge is None else self.judge.share

    def judge_text(self, round: int) -> dict[str, float]:
        """Decide what text-guided masks weigh in this round, by the global student and teacher as they are before it.

        Returns:
            The figures of `Judge.judge`; none where nothing is judged.
        """
        if self.judge is None:
            return {}
        if self.judge.plain is None:
            self._train_plain(first_round=round == 1)
        students = {"student": self.student}
        if (teacher := getattr(self.objective, "teacher", None)) is not None:
            students["teacher"] = teacher.model
        return self.judge.judge(students)

    def _train_plain(self, first_round: bool) -> None:
        """Train the student that learns from the site's labelled pictures alone, and keep its figures."""
        steps = round(self.settings.plain_share * self.settings.rounds * self.steps_per_round)
        steps = steps if self.spare_steps is None else min(steps, self.spare_steps)
        if not steps or not len(self.labelled):
            return
        plain = _Plain(self, steps)
        if first_round:
            # public weights of the start (`student.weights`) are in this global model, and nowhere at a site
            load_tensors(plain.student, {name: value.detach() for name, value in self.student.named_parameters()})
        plain.train_round(1)
        followed = self.judge.dice(plain.student)
        # after few steps the statistics that were followed may still be those of its start
        estimate_statistics(plain.config, self.phase, plain.student, self.train, device=self.device)
        self.judge.plain = max(followed, self.judge.dice(plain.student), key=np.mean)

    def private(self, *, copies: bool = True) -> dict[str, Tensor]:
        objective = {f"objective.{name}": value for name, value in self.objective.state().items()}
        judge = {} if self.judge is None else {f"judge.{name}": value for name, value in self.judge.state().items()}
        return {**super().private(copies=copies), **on_cpu(objective, copies), **judge}

    def load_private(self, tensors: dict[str, Tensor]) -> None:
        super().load_private(tensors)
        self.objective.load_state(with_prefix(tensors, "objective."))
        if self.judge is not None:
            self.judge.load_state(with_prefix(tensors, "judge."))

    def batches(self, steps: int, draw: torch.Generator) -> Iterator[Batch]:
        return self.objective.batches(steps, draw)

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        with lone_value_told():  # methods take batches apart, each in its own way
            return self.objective.losses(batch, draw, share_done)

    def pace(self, share_done: float) -> float:
        return 1.0 if len(self.labelled) else min(1.0, self.objective.unlabelled_weight(share_done))

    def after_step(self, share_done: float) -> None:
        self.objective.after_step(self.step, share_done)

    def validate(self) -> dict[str, float]:
        """ "dice" and "iou" of the student on validation pictures with masks; of a student that is given sentences also
        "text_dice" and "text_iou", with them."""
        val = self.val.select(np.flatnonzero(self.val.masked))
        if not len(val):
            return {}
        scores = score_model(self.config, self.student, val, self.device, self.text, distances=False)
        return {name: scores[name] for name in ("dice", "iou", "text_dice", "text_iou") if name in scores}

    # What the objective is lent, beside pictures, masks, normalise and autocast (`dusss_core.objectives.objective`).

    def geometry(self, count: int, draw: torch.Generator) -> Geometry:
        """A draw of flips, turns, rotation, scale and shift for so many pictures."""
        return self._geometry(count, draw, self.settings.flip, self.settings.turns)

    def geometry_told(self, positions: np.ndarray, draw: torch.Generator) -> Geometry:
        """As `geometry`, but that a picture is mirrored or turned only where its sentence can be."""
        sentence = torch.from_numpy(self.train.sentence[positions])
        flip = self.text.may_flip(sentence) & self.settings.flip
        turns = self.text.may_turn(sentence) if self.settings.turns else False
        return self._geometry(len(positions), draw, flip, turns)

    def _geometry(self, count: int, draw: torch.Generator, flip: bool | Tensor, turns: bool | Tensor) -> Geometry:
        return Geometry.draw(count, draw, flip=flip, turns=turns, outside=self.settings.outside)

    def words(self, positions: np.ndarray, draw: torch.Generator, mirrored: Tensor | None = None) -> Words:
        """Token features of the records' sentences, B x L x E, mirrored where B bool `mirrored` says so; nothing for
        records without a sentence, and for a share `student.text_dropout` of the others, drawn with `draw`."""
        sentence = torch.from_numpy(self.train.sentence[positions])
        if share := self.config.student.text_dropout:
            withheld = torch.rand(len(sentence), generator=draw) < share
            sentence = torch.where(withheld, -1, sentence)
        tokens, mask = self.text.features(sentence, mirrored=mirrored)
        return Words(tokens.to(self.device), mask.to(self.device))

    def text_masks(self, positions: np.ndarray, geometry: Geometry) -> Tensor | None:
        """Text-guided masks as logits, B x outputs x H x W float32, moved as their pictures; NaN for records without
        one; None where there are none at all."""
        if self.text_logits is None:
            return None
        stored = self._text_logits.take(positions).float()
        outside = torch.full((stored.shape[1],), OUTSIDE, device=self.device)
        if len(outside) > 1:
            outside[0] = 0.0  # of several channels the first is the background
        return geometry.apply_logits(stored, outside)

    @cached_property
    def _text_logits(self) -> Resident:
        return Resident(self.text_logits, self.device)


class _Plain(Segmenter):
    """A student from the study's start that learns from the labelled pictures of `of` alone, with batch statistics of
    its own. Public weights that the study starts from are its caller's to load."""

    def __init__(self, of: Segmenter, steps: int):
        method = MethodConfig(preset="supervised")
        segment = of.config.segment.model_copy(update={"rounds": 1})
        changes = {"method": method, "segment": segment, "personal": PersonalConfig(), "prox_mu": 0.0}
        changes["local_norm"] = True  # nothing of it travels, its statistics neither
        config = of.config.model_copy(update=changes)
        super().__init__(config, of.site, of.train, of.val, device=of.device, progress=of.progress)
        self.steps_per_round = steps

    def seed_names(self, round: int) -> tuple[object, ...]:
        return *super().seed_names(round), "plain"
