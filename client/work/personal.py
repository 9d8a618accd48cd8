"""The student that is this site's own (`personal` in a study's settings): kept here, tested here, never sent.

Ditto, APFL: of the students after each round the one that scored best on this site's own validation pictures, the later
of equals; without such pictures the last one. FedRep: the final student with this site's head. Fine-tuning: what this
site makes of the final student when it is asked to test it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from client.declined import Declined
from client.door.machine import raise_full
from client.door.request import Judged
from client.privacy.ledger import note_unpaid_by
from client.state.store import write_log
from client.work.keeping import keep_own_student
from client.work.training import check_can_train
from client.work.workbench import Workbench
from dusss_core.config import LEAST_BATCH, TrainingConfig
from dusss_core.errors import UserError
from dusss_core.phases import Phase

if TYPE_CHECKING:
    from torch import Tensor


def figures(request: Judged, bench: Workbench, student: dict[str, Tensor], tested: Mapping[str, float]) -> dict:
    """What this site's own student scores on the test pictures, and on the validation pictures that chose it.

    Args:
        student: the final student, whole.
        tested: what that one scores on the test pictures.

    Returns:
        "personal.NAME" for each of its figures; "personal.val_dice"; "personal.round", of which it is. Nothing where
        this site has no student of its own, or may not make one now: its own log says why.
    """
    from dusss_core.intervals import without_spread
    from dusss_core.training import evaluate_student

    config, device = request.training, bench.device
    own = _own(request, bench, student)
    if own is None:
        return {}
    tensors, round = own
    same = config.personal.kind == "fedrep"  # whose head the site's file has already
    if not same:
        keep_own_student(request, tensors, round)
    scores = (
        without_spread(tested) if same else evaluate_student(config, tensors, bench.split("test"), device, bench.told)
    )
    val = evaluate_student(config, tensors, bench.split("val"), device, bench.told, distances=False)
    found = {f"personal.{name}": value for name, value in scores.items() if name != "n"}
    return {**found, **({"personal.val_dice": val["dice"]} if "dice" in val else {}), "personal.round": round}


def _own(request: Judged, bench: Workbench, student: dict[str, Tensor]) -> tuple[dict[str, Tensor], int] | None:
    """This site's own student and its round, kept in any case."""
    from dusss_core.training import at_its_best, student_after

    config, state, kind = request.training, request.state, request.training.personal.kind
    train, val = bench.split("train"), bench.split("val")
    if kind in ("fedrep", "finetune"):
        own, round = (student if kind == "fedrep" else _fine_tuned(request, bench, student)), request.round
    elif val.masked.any() and (chosen := state.personal()) is not None:
        tensors, round = chosen
        own = at_its_best(config, tensors, train, val, bench.device, bench.told)
        if own is tensors:
            return chosen
    else:
        private, round = state.newest(Phase.SEGMENT, before=10**9) or ({}, 0)
        own = student_after(config, private, student, train, bench.device, bench.told)
    if own is None:
        return None
    state.save_personal(round, own)
    return own, round


def _fine_tuned(request: Judged, bench: Workbench, student: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The final student after this site's own steps; None where the site does not train now, and why in its log."""
    from dusss_core.training import on_labels_alone

    config = request.training
    try:
        request.allowed.fine_tuning()
        check_can_train(request, bench)
        note_unpaid_by(request)  # before it trains: it may be killed meanwhile
        plain = on_labels_alone(config) if _can_compare(bench) else None
        own = bench.fine_tuned(request, student, shared_by=2 if plain else 1)
        return own if plain is None else _better(request, bench, own, student, plain)
    except (Declined, UserError) as why:
        write_log(request.site.state_dir, f"the final student was not fine-tuned here: {why}")
        return None
    except (MemoryError, RuntimeError) as error:
        raise_full(error, f"{Phase.SEGMENT}.batch", config.segment.batch, LEAST_BATCH)
        raise


def _can_compare(bench: Workbench) -> bool:
    return bool(bench.split("train").labelled.any() and bench.split("val").masked.any())


def _better(
    request: Judged, bench: Workbench, own: dict[str, Tensor], student: dict[str, Tensor], plain: TrainingConfig
) -> dict[str, Tensor]:
    """Of the method's student and that of labels alone the one that this site's validation pictures speak for; the
    method's of equals, and where labels alone give none. Which it is stays at the site.

    Args:
        plain: settings of the latter, which is made here from the final student.
    """
    from dusss_core.training import evaluate_student

    log = request.site.state_dir
    try:
        other = bench.fine_tuned(request, student, plain, 2)
    except UserError as why:
        write_log(log, f"fine-tuned with the method alone: on labels alone it gave no student: {why}")
        return own
    config, val = request.training, bench.split("val")
    dice, dice_plain = (
        evaluate_student(config, one, val, bench.device, bench.told, distances=False)["dice"] for one in (own, other)
    )
    write_log(
        log,
        f"fine-tuned with the method: Dice {dice:.3f} on validation pictures; on labels alone: {dice_plain:.3f}; kept: "
        + ("labels alone" if dice_plain > dice else "the method's"),
    )
    return other if dice_plain > dice else own
