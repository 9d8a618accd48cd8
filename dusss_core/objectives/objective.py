"""What a method of step 2 is, and what it gets from its host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dusss_core.augment import Geometry, weak_view
from dusss_core.config import SegmentConfig, TrainingConfig
from dusss_core.losses import supervised_loss
from dusss_core.models.decoders import Addition
from dusss_core.models.words import Words
from dusss_core.records import Split
from dusss_core.sampling import labelled_per_step, two_stream_batches
from dusss_core.text.bank import TextBank

Batch = tuple[np.ndarray, np.ndarray]
"""Positions of labelled and of unlabelled training records; either may be empty."""
Values = Mapping[str, Tensor]
"""Figures of a step by name, 0-dimensional and float32, where they were computed: to read one is to wait for it."""


class Host(Protocol):
    """What the trainer of step 2 (`dusss_core.training.segment`) lends to its objective."""

    config: TrainingConfig
    settings: SegmentConfig
    student: nn.Module
    labelled: np.ndarray
    """Positions of the records whose masks may be trained on."""
    unlabelled: np.ndarray
    """Positions of the other records that the objective learns from."""
    steps_per_round: int
    guided: np.ndarray
    """N bool: training records with a text-guided mask."""
    text_share: float
    """What text-guided masks weigh at this site, in [0, 1]; 1: in full."""
    train: Split
    text: TextBank | None
    """Features of the site's sentences, where the student is given them."""

    def geometry(self, count: int, draw: torch.Generator) -> Geometry:
        """A draw of flips, turns, rotation, scale and shift for so many pictures."""

    def geometry_told(self, positions: np.ndarray, draw: torch.Generator) -> Geometry:
        """As `geometry`, for a student that is given sentences: pictures are moved only as their sentences can be."""

    def words(self, positions: np.ndarray, draw: torch.Generator, mirrored: Tensor | None) -> Words:
        """What the student is told of these records: their sentences, those of mirrored pictures (B bool, on the CPU)
        mirrored; nothing for records without one, and where `student.text_dropout` withholds it."""

    def pictures(self, positions: np.ndarray) -> Tensor:
        """B x C x H x W in [0, 1], not yet normalised."""

    def masks(self, positions: np.ndarray) -> Tensor:
        """B x H x W class indices."""

    def text_masks(self, positions: np.ndarray, geometry: Geometry) -> Tensor | None:
        """Text-guided masks as logits, B x classes x H x W, moved as their pictures; NaN for records without one; None
        where there are none at all."""

    def normalise(self, picture: Tensor) -> Tensor:
        """From [0, 1] to the networks' input."""

    def autocast(self) -> AbstractContextManager:
        """bfloat16 where the study asks for it."""


class Objective(ABC):
    """A method of step 2 at one site in one phase.

    What it is trained by gradient is `builds` in the student's network, and travels. What must stay at the site,
    teachers and memories, it holds itself, and hands out by `state`.
    """

    networks: ClassVar[frozenset[str]] = frozenset({"unet", "small_unet", "encoder"})
    """Kinds of `student.network` that it can work on; `encoder`: a student with `student.encoder`."""
    text: ClassVar[Literal["no", "train", "inference"]] = "no"
    """Whether it needs sentences: not at all, for text-guided masks in training, or at inference too, where the student
    itself is given them."""
    coupled: ClassVar[bool] = False
    """Whether the loss of one record depends on the others of its batch, or on an earlier step's: then no noise can
    make it private."""
    coupling: ClassVar[str] = "mixes the records of a batch, and no noise hides one of them"
    """How, where it is `coupled`: what a study with privacy is told."""

    @classmethod
    def builds(cls, config: TrainingConfig) -> tuple[Addition, ...]:
        """What the network gets beside its own parts: further decoders by their kind, `pixel_heads`, or a `copy` of it
        with another start."""
        return ()

    @classmethod
    def learns_from(cls, config: TrainingConfig) -> Literal["all", "with_text", "none"]:
        """Unlabelled records that teach it something."""
        return "all"

    @classmethod
    def alone(cls, config: TrainingConfig) -> tuple[str, ...] | None:
        """Prefixes of the parameters that a site without labels hands on as they came, and does not count in the mean
        of; None: such a site cannot take part, since nothing holds its answer."""
        return ()

    @classmethod
    def labelled_per_step(cls, settings: SegmentConfig, labelled: int, other: int) -> int:
        """Labelled records of each step, as `batches` draws them at a site with so many labelled records, and so many
        other ones that teach it something. Of `limits.min_labelled_per_step` a site refuses what has fewer."""
        return labelled_per_step(labelled, other, settings.batch, settings.labelled_share)

    def __init__(self, host: Host):
        self.host = host
        self.config, self.settings = host.config, host.settings

    def start(self) -> None:  # noqa: B027 (most have nothing to do)
        """The first student has arrived, before any step. What `state` gives is as in a new process after this.

        A process that goes on from a later round has `load_state` in its place, before any student has arrived: what
        `state` names is there from the start, by `__init__`.
        """

    def before_round(self) -> None:  # noqa: B027 (most have nothing to do)
        """The student is the round's global model, before any step of the round."""

    def batches(self, steps: int, draw: torch.Generator) -> Iterator[Batch]:
        """`steps` batches, drawn with `draw`."""
        host, settings = self.host, self.settings
        return two_stream_batches(host.labelled, host.unlabelled, settings.batch, settings.labelled_share, steps, draw)

    @abstractmethod
    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        """The loss of one batch, and figures to report.

        Args:
            batch: without labelled records where `alone` lets a site take part that has none; without unlabelled ones
                where all are labelled.
            share_done: of the phase, lies behind, in [0, 1].
        """

    @abstractmethod
    def unlabelled_weight(self, share_done: float) -> float:
        """Weight of what unlabelled records teach beside what labelled ones do.

        AdamW does not see the scale of a loss: at a site where nothing but this is left, the learning rate is
        multiplied by it (but by 1 at most), so that young targets move such a site as little as any other. Where the
        loss has no ramp-up, it has one here.
        """

    def after_step(self, step: int, share_done: float) -> None:  # noqa: B027 (most have nothing to do)
        """Called after each optimiser step.

        Args:
            step: the site's own steps before it in this phase; rounds that it missed do not count.
            share_done: that of the step's `losses`.
        """

    def state(self) -> dict[str, Tensor]:
        """What stays at the site, for `load_state` of a later process: its own tensors, which the host copies."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:  # noqa: B027 (most have nothing to do)
        """Take back what `state` gave, by copies: a round that fails is begun again from the same tensors."""

    def kept(self) -> Iterator[Tensor]:
        """All that it holds in memory; `state` and what a round makes anew."""
        yield from self.state().values()

    # What several methods do alike.

    def weak_views(self, batch: Batch, draw: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """The batch's pictures moved and weakly changed, labelled ones first, in [0, 1]; and the masks of those, moved
        alike (None: there are none)."""
        views, mask = [], None
        labelled, unlabelled = batch
        if len(labelled):
            geometry = self.host.geometry(len(labelled), draw)
            views.append(weak_view(geometry.apply(self.host.pictures(labelled)), draw))
            mask = geometry.apply_mask(self.host.masks(labelled))
        if len(unlabelled):
            geometry = self.host.geometry(len(unlabelled), draw)
            views.append(weak_view(geometry.apply(self.host.pictures(unlabelled)), draw))
        return torch.cat(views), mask

    def moved(self, batch: Batch, draw: torch.Generator) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """Weak views of the labelled pictures and of the others, as far as there are any; the masks of those, moved
        alike; and the others as they were moved, before the weak view changed them."""
        labelled, unlabelled = batch
        views, mask, picture = [], None, None
        if len(labelled):
            view, mask = self.weak_views((labelled, unlabelled[:0]), draw)
            views.append(view)
        if len(unlabelled):
            picture = self.host.geometry(len(unlabelled), draw).apply(self.host.pictures(unlabelled))
            views.append(weak_view(picture, draw))
        return views, mask, picture

    def supervised(self, logits: Tensor, mask: Tensor) -> Tensor:
        """L_sup, Eq. 14: the same for every method, so that a difference between methods is the methods'."""
        return supervised_loss(logits, mask, dice=self.settings.dice)
