"""Figures of a model on the site's data, without training: of a phase's last model, or of the final student."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from flwr.app import RecordDict

from client.door.machine import raise_full
from client.door.request import Judged
from client.privacy.ledger import note_unpaid_by
from client.work import personal
from client.work.disclosure import open_figures
from client.work.keeping import keep_finished_vlm, keep_fitted_student, keep_student, offer_own_student
from client.work.training import keep_vlm, load_shared, prefixed
from client.work.workbench import Workbench
from dusss_core.files import with_prefix
from dusss_core.phases import Phase
from feddusss import wire

_OF_TRAINING = ("personal.", "pseudo.")
"""Figures that training records have a part in; with `local_norm` they are in the statistics of every model."""


def plain(request: Judged, bench: Workbench, figures: Mapping[str, float]) -> RecordDict:
    """The answer of a site without differential privacy."""
    if request.training.local_norm or any(name.startswith(_OF_TRAINING) for name in figures):
        note_unpaid_by(request)
    return RecordDict({"metrics": wire.figures(open_figures(request, bench, figures))})


def figures(request: Judged, bench: Workbench) -> dict[str, float]:
    """Means over a split, as `request.what` says, and the seconds that they took.

    Raises:
        Declined: the site has not been given the vision-language model; the model does not fit.
    """
    started = time.perf_counter()
    keep_vlm(request)
    try:
        found = _validate(request, bench) if request.what == "val" else _test(request, bench)
    except (MemoryError, RuntimeError) as error:
        raise_full(error, "runtime.eval_batch", bench.eval_batch(request.phase))
        raise
    return {**found, "seconds": time.perf_counter() - started}


def _validate(request: Judged, bench: Workbench) -> dict[str, float]:
    """Figures of the model in the message on the validation split, as a round gives before it trains."""
    from dusss_core.training import can_train

    if can_train(request.training, request.phase, bench.split("train")):
        return {}
    trainer, round = bench.trainer(request)
    load_shared(trainer, request, round)
    found = trainer.validate()
    offer_own_student(request, trainer, found)
    if round:
        bench.trainer_at = (request.run_key, request.phase, round)
    return prefixed("val", found)


def _test(request: Judged, bench: Workbench) -> dict[str, float]:
    """Figures of the final student, of the text-guided masks and of the pseudo-labels, where masks are known."""
    from dusss_core.training import at_its_best, evaluate_logits, evaluate_student, text_guided_masks

    config, device, state = request.training, bench.device, request.state
    test, train = bench.split("test"), bench.split("train")
    student, found = request.model, {}
    local = state.local_layers(Phase.SEGMENT, request.round)
    keeps_layers = config.local_norm or config.personal.own_head != "none"
    if student is not None and (local or not keeps_layers):
        student = at_its_best(config, {**student, **local}, train, bench.split("val"), device, bench.told)
        keep_student(request, student)
        scores = evaluate_student(config, student, test, device, bench.told, behind=True)
        found |= prefixed("test", scores)
        if config.personal.kind != "none":
            found |= personal.figures(request, bench, student, scores)
    elif student is not None and config.personal.own_head == "none":
        keep_fitted_student(request, student, bench)
    hidden = (train.masked & ~train.labelled & train.has_text).nonzero()[0]
    newest = state.newest(Phase.SEGMENT, before=10**9) if len(hidden) else None
    if newest is not None and (teacher := with_prefix(newest[0], "objective.teacher.")):
        scores = evaluate_student(config, teacher, train.select(hidden), device, distances=False)
        found |= {"pseudo.teacher_dice": scores.get("dice", math.nan), "pseudo.n": float(len(hidden))}
    if config.method.text_mask and request.vlm_digest:
        vlm = bench.vlm(request)
        if config.local_norm and not state.local_layers(Phase.PRETRAIN, request.vlm_round):
            return found
        keep_finished_vlm(request, vlm)
        if test.has_text.any():
            logits = text_guided_masks(config, vlm, test, bench.text, device)
            found |= prefixed("text_mask", evaluate_logits(config, logits, test))
        if len(hidden) and (masks := bench.text_masks(request)) is not None:
            scores = evaluate_logits(config, masks[hidden], train.select(hidden))
            found |= {"pseudo.text_dice": scores.get("dice", math.nan)}
    return found
