"""A round of training, made in two steps: what must happen before the first batch is drawn happens between them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flwr.app import RecordDict

from client.declined import Declined
from client.door.machine import raise_full
from client.door.request import Judged
from client.privacy.ledger import note_unpaid_by
from client.work.disclosure import open_figures
from client.work.keeping import offer_own_student
from client.work.workbench import Workbench
from dusss_core.config import LEAST_BATCH
from dusss_core.phases import Phase
from dusss_core.sampling import labelled_per_step, steps_per_epoch
from feddusss import compression, wire

if TYPE_CHECKING:
    from torch import Tensor

    from dusss_core.manifest import Record

PLAIN_ROUNDS = 10
"""The plain student, which a site trains once for a study, has the passes of so many of the longest rounds."""


def plain(round: Round) -> RecordDict:
    """The answer of a site without differential privacy: tensors, and the figures of the round.

    Raises:
        Declined: as `Round`; the state before is kept.
    """
    request = round.request
    figures = round.prepare()
    note_unpaid_by(request)
    update, trained = round.train()
    told = open_figures(request, round.bench, {**figures, **trained})
    return RecordDict({"arrays": wire.pack(update), "metrics": wire.figures(told)})


class Round:
    """One round at this site: `prepare`, then `train`.

    Raises:
        Declined: the site cannot train in the phase; the vision-language model is not what its digest says.
    """

    def __init__(self, request: Judged, bench: Workbench):
        self.request = request
        self.bench = bench
        self._started = time.perf_counter()
        check_can_train(request, bench)
        keep_vlm(request)

    @property
    def records(self) -> list[Record]:
        """What the site's manifest holds."""
        return self.bench.data.records

    def prepare(self) -> dict[str, float]:
        """Load the site's private state and the model of the message.

        Returns:
            What the model scores on the validation split: "val.*".

        Raises:
            Declined: more steps than the site allows; no vision-language model; the model does not fit.
        """
        most = self.request.allowed.max_steps
        self._trainer, self._state_round = self.bench.trainer(self.request)
        students = 2 if self.request.training.personal.beside else 1
        if most is not None and students * self._trainer.steps_per_round > most:
            # the number of steps is left out, since it tells the number of pictures
            raise Declined(f"more steps per round than this site allows ({most}, limits.max_steps_per_round)")
        self._trainer.spare_steps = self._plain_passes()
        if most is not None:
            spare = most - students * self._trainer.steps_per_round
            self._trainer.spare_steps = min(spare, self._trainer.spare_steps)
        load_shared(self._trainer, self.request, self._state_round)
        try:
            figures = self._trainer.validate()
        except (MemoryError, RuntimeError) as error:
            raise_full(error, "runtime.eval_batch", self.bench.eval_batch(self.request.phase))
            raise
        if self.request.training.personal.beside:
            offer_own_student(self.request, self._trainer, figures)
        return prefixed("val", figures)

    def train(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Train, and begin to keep the private state: `client.door.exit.settle` waits for that.

        Returns:
            The tensors as they travel, and the figures of the round.

        Raises:
            Declined: the site's hours are over, or the weights are not finite.
            NotFinite: the loss is not finite.
            OutOfMemory: a batch does not fit.
        """
        from dusss_core.models.batch_norm import LoneValue

        request, bench = self.request, self.bench
        try:
            figures = prefixed("train", self._trainer.train_round(request.round))
        except LoneValue as error:  # of the study's settings, whose author must hear of it
            raise Declined(f"{error.problem}: {error.remedy}", abstains=True) from None
        except (MemoryError, RuntimeError) as error:
            raise_full(error, f"{request.phase}.batch", request.phase.settings(request.training).batch, LEAST_BATCH)
            raise
        shared = self._trainer.shared(copies=False)
        _check_finite(shared)
        update = self._as_it_travels(shared)
        private = self._trainer.private(copies=False)  # which nobody changes before the answer leaves
        request.writes.append(request.disk.submit(request.state.save, request.phase, request.round, private))
        bench.trainer_at = (request.run_key, request.phase, request.round)
        figures |= {
            "num-examples": request.phase.weight(bench.data.counts),
            "state.age": request.round - 1 - self._state_round,
            "seconds": time.perf_counter() - self._started,
        }
        return update, figures

    def _plain_passes(self) -> int:
        """Steps of the passes that the site allows the plain student of `method.judge_text`."""
        batch = self.request.phase.settings(self.request.training).batch
        a_pass = steps_per_epoch(len(self.bench.split("train")), batch)
        return PLAIN_ROUNDS * self.request.site.limits.max_epochs_per_round * a_pass

    def _as_it_travels(self, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of an update; what compression loses of it is kept for the next one."""
        request = self.request
        if request.wire == "bfloat16":
            return wire.rounded(wire.difference(shared, request.model))
        if request.codec is None:
            return shared
        lost = request.state.lost(request.phase, request.round)
        update, lost = compression.compress(request.codec, shared, request.model, lost)
        _check_finite(lost)
        exchanged = request.phase, request.round, request.model_digest, request.model, lost
        request.writes.append(request.disk.submit(request.state.save_exchanged, *exchanged))
        return update


def check_can_train(request: Judged, bench: Workbench) -> None:
    """Refuse a phase for which the site lacks the data.

    Raises:
        Declined: with what is missing.
    """
    from dusss_core.training import can_train

    if reason := can_train(request.training, request.phase, bench.split("train")):
        raise Declined(reason, abstains=True)
    least = request.site.limits.min_labelled_per_step
    if request.site.privacy.epsilon is None and 0 < _labelled_per_step(request, bench) < least:
        # how many there are is left out, since it tells the number of pictures
        raise Declined(
            f"fewer labelled pictures per step than this site allows ({least}, limits.min_labelled_per_step)",
            abstains=True,
        )


def _labelled_per_step(request: Judged, bench: Workbench) -> int:
    """Labelled pictures of a step, each counted once; 0 where none is trained on."""
    phase, config, train = request.phase, request.training, bench.split("train")
    if phase.reads_sentences and not config.method.grounding_supervision:
        return 0
    usable, settings = phase.usable(train), phase.settings(config)
    labelled = int((usable & train.labelled).sum())
    other = int(usable.sum()) - labelled
    if phase == Phase.SEGMENT:
        from dusss_core.objectives import objective_of

        kind = objective_of(config)
        # with fewer others than these, as where only those with a sentence teach, a step has more labelled ones
        drawn = kind.labelled_per_step(settings, labelled, 0 if kind.learns_from(config) == "none" else other)
    else:
        drawn = labelled_per_step(labelled, other, settings.batch, settings.labelled_share)
    return min(drawn, bench.data.counts["n_labelled"])


def keep_vlm(request: Judged) -> None:
    """Keep the vision-language model, where the message brings it.

    Raises:
        Declined: it is not the model that its digest names.
    """
    if request.vlm is not None:
        request.state.save_vlm(request.vlm_digest, request.vlm)
        request.vlm.clear()  # it is on the disk, and the round needs the memory


def load_shared(trainer, request: Judged, state_round: int) -> None:
    """Give a trainer the model of the message, and without private state (round 0) also the layers that stay here.

    Raises:
        Declined: they do not fit.
    """
    if request.model is None or {name: tensor.shape for name, tensor in request.model.items()} != trainer.shapes():
        raise Declined("the model in the message does not fit the study's settings in this release")
    if request.layers is not None and not state_round:
        try:
            trainer.load_start(request.layers)
        except ValueError:
            raise Declined("the first layers in the message do not fit the study's settings in this release") from None
    trainer.load_shared(request.model)


def prefixed(prefix: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Figures under `prefix.NAME`."""
    return {f"{prefix}.{name}": value for name, value in figures.items()}


def _check_finite(shared: Mapping[str, Tensor]) -> None:
    if not all(map(wire.is_finite, shared.values())):
        raise Declined("training gave weights that are not finite; the state before is kept", diverged=True)
