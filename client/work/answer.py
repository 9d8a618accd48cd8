"""What a site does with a message, from the settings in it to the answer.

An answer holds the shared tensors, single figures, and nothing else. What goes wrong here is told in full in the
site's own log; to the coordinator goes a sentence that was written for it (`Declined`), or the kind of error alone,
since an error's text may name a patient's file.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from client.declined import Declined
from client.door import audit, policy
from client.door.request import Request, read_request, read_tensors
from client.privacy import ledger, privately
from client.secure import part as secure
from client.state.store import SiteState, locked, write_log
from client.work import memory, observe
from client.work.workbench import Workbench, workbench
from dusss_core.errors import NotFinite, UserError
from dusss_core.files import with_prefix
from dusss_core.phases import Phase
from feddusss import __version__, wire
from sites.config import SiteConfig, load_site

if TYPE_CHECKING:
    from torch import Tensor


def answer(kind: str, content: RecordDict, site_file: Path) -> RecordDict:
    """Work on a message for the site that `site_file` describes.

    Args:
        kind: query, train or evaluate.

    Returns:
        The content of the answer; {"config": {"declined": reason}} if the site did not do it.
    """
    site = None
    try:
        site = load_site(site_file)
        audit.record(site.state_dir, "message", kind=kind, **audit.incoming(content))
        request = read_request(content)
        policy.check_study(site, request)
        with locked(site.state_dir):
            state = SiteState(site.state_dir, request.training.study, request.run_key)
            bench = workbench(site_file, site, request)
            part = secure.part_of(site, kind, request, content)
            with memory.held(site.limits, bench.device):
                reply = (
                    _part_of_a_sum(part, site, request, content, state, bench)
                    if part
                    else (_KINDS[kind](site, request, content, state, bench))
                )
        about = {"kind": kind, "study": request.training.study, "phase": request.phase, "round": request.round}
        about |= part.about() if part else {}
        audit.record(site.state_dir, "answer", **about, **audit.outgoing(reply))
        write_log(site.state_dir, f"{kind} {request.phase} round {request.round}: answered")
        return reply
    except Declined as declined:
        why = declined
    except audit.Unrecorded as error:
        why = Declined(_UNRECORDED)
        observe.failed(error)
    except Exception as error:
        why = _told(error, site)
        observe.failed(error)
        if site is not None:
            write_log(site.state_dir, traceback.format_exc())
    reason = str(why)
    if site is not None:
        write_log(site.state_dir, f"{kind}: declined: {reason}")
        try:
            audit.record(site.state_dir, "declined", kind=kind, reason=reason, abstains=why.abstains)
        except audit.Unrecorded:
            reason = _UNRECORDED
    told = {"declined": reason, "abstains": why.abstains, "diverged": why.diverged}
    return RecordDict({"config": ConfigRecord({**told, **({"spent": True} if why.spent else {})})})


def _told(error: Exception, site: SiteConfig | None) -> Declined:
    """What the coordinator hears of an error."""
    if site is None and isinstance(error, UserError):
        return Declined(UNUSABLE_FILE)
    if isinstance(error, ledger.LedgerError):
        return Declined(privately.LEDGER_IS_WRONG)
    if site is not None and privately.is_private(site):
        return Declined(privately.FAILED)
    diverged = isinstance(error, NotFinite)
    what = "the loss is not finite" if diverged else type(error).__name__
    return Declined(f"{what}; the site's own log says more", diverged=diverged)


def _query(site: SiteConfig, request: Request, content: RecordDict, state: SiteState, bench: Workbench) -> RecordDict:
    if privately.is_private(site):
        counts, role = privately.counts(site), privately.role(site)
    else:
        counts = bench.data.counts
        role = "train" if counts["n_labelled"] + counts["n_unlabelled"] else "evaluate"
    texts = {"site": site.site, "release": __version__, "role": role, "vlm": state.vlm_digest()}
    return RecordDict({"config": ConfigRecord(texts), "metrics": _metrics(counts)})


def _part_of_a_sum(
    part: secure.Part, site: SiteConfig, request: Request, content: RecordDict, state: SiteState, bench: Workbench
) -> RecordDict:
    """A step of secure aggregation, of which training is one."""
    if part.step == "keys":
        _check_can_train(site, request, bench)  # a site that joins and then cannot train counts as dropped out
    if part.step != "train":
        return part.answer()
    part.check_task(content)
    return part.masked(content, _train(site, request, content, state, bench))


def _check_can_train(site: SiteConfig, request: Request, bench: Workbench) -> None:
    from dusss_core.training import can_train

    policy.check_training(site, request)
    policy.check_student(site, request.training)
    if reason := can_train(request.training, request.phase, bench.split("train")):
        raise Declined(reason, abstains=True)


def _train(site: SiteConfig, request: Request, content: RecordDict, state: SiteState, bench: Workbench) -> RecordDict:
    started, private = time.perf_counter(), privately.is_private(site)
    _check_can_train(site, request, bench)
    _keep_vlm(request, content, state)
    if private:
        privately.check_patients(site, bench.data.records)
        if (answered := privately.paid_answer(site, request, content)) is not None:
            return answered
    trainer, state_round = bench.trainer(state, request)
    policy.check_steps(site, trainer.steps_per_round)
    received = _load_shared(trainer, content)
    metrics = _prefixed("val", trainer.validate())
    if private:
        paid = privately.pay(site, request, content)
    else:
        ledger.note_unpaid(site.state_dir, request.training.study, request.run_key, request.phase, request.round)
    metrics |= _prefixed("train", trainer.train_round(request.round))
    shared = trainer.shared()
    _check_finite(shared)
    state.save(request.phase, request.round, trainer.private())
    bench.trained(request)
    metrics |= {
        "num-examples": request.phase.weight(bench.data.counts),
        "state.age": request.round - 1 - state_round,
        "seconds": time.perf_counter() - started,
    }
    if request.wire == "bfloat16":
        shared = wire.rounded(wire.difference(shared, received))
    if not private:
        return RecordDict({"arrays": wire.pack(shared), "metrics": _metrics(metrics)})
    privately.keep_figures(site, request, "train", metrics)
    reply = RecordDict({"arrays": wire.pack(shared), "metrics": _metrics(paid)})
    privately.keep_answer(site, request, content, reply)
    return reply


def _evaluate(
    site: SiteConfig, request: Request, content: RecordDict, state: SiteState, bench: Workbench
) -> RecordDict:
    started = time.perf_counter()
    policy.check_student(site, request.training)
    _keep_vlm(request, content, state)
    metrics = (
        _validate(request, content, state, bench) if request.what == "val" else _test(request, content, state, bench)
    )
    if privately.is_private(site):
        privately.keep_figures(site, request, request.what, metrics)
        return RecordDict({"metrics": _metrics({})})
    return RecordDict({"metrics": _metrics({**metrics, "seconds": time.perf_counter() - started})})


def _validate(request: Request, content: RecordDict, state: SiteState, bench: Workbench) -> dict[str, float]:
    """Figures of the model in the message on the validation split, as `_train` gives before it trains."""
    from dusss_core.training import can_train

    if can_train(request.training, request.phase, bench.split("train")):
        return {}
    trainer, round = bench.trainer(state, request)
    _load_shared(trainer, content)
    metrics = _prefixed("val", trainer.validate())
    if round:
        bench.untouched(request, round)
    return metrics


def _test(request: Request, content: RecordDict, state: SiteState, bench: Workbench) -> dict[str, float]:
    """Figures of the final student, of the text-guided masks and of the pseudo-labels, where masks are known."""
    from dusss_core.training import evaluate_logits, evaluate_student, text_guided_masks, with_own_statistics

    config, device = request.training, bench.device
    test, train = bench.split("test"), bench.split("train")
    student = read_tensors(content, "arrays")
    local = state.local_layers(Phase.SEGMENT, request.round)
    metrics = {}
    if student is not None and (local or not config.local_norm):
        student = with_own_statistics(config, Phase.SEGMENT, {**student, **local}, train, None, device)
        metrics |= _prefixed("test", evaluate_student(config, student, test, device))
    hidden = (train.masked & ~train.labelled & train.has_text).nonzero()[0]
    newest = state.newest(Phase.SEGMENT, before=10**9) if len(hidden) else None
    if newest is not None and (teacher := with_prefix(newest[0], "objective.teacher.")):
        scores = evaluate_student(config, teacher, train.select(hidden), device)
        metrics |= {"pseudo.teacher_dice": scores.get("dice", math.nan), "pseudo.n": float(len(hidden))}
    if config.method.text_mask and request.vlm_digest:
        vlm = bench.vlm(state, request)
        if config.local_norm and not state.local_layers(Phase.PRETRAIN, request.vlm_round):
            return metrics
        if test.has_text.any():
            logits = text_guided_masks(config, vlm, test, bench.text, device)
            metrics |= _prefixed("text_mask", evaluate_logits(config, logits, test))
        if len(hidden) and (masks := bench.text_masks(state, request)) is not None:
            scores = evaluate_logits(config, masks[hidden], train.select(hidden))
            metrics |= {"pseudo.text_dice": scores.get("dice", math.nan)}
    return metrics


def _keep_vlm(request: Request, content: RecordDict, state: SiteState) -> None:
    tensors = read_tensors(content, "vlm")
    if tensors is not None:
        state.save_vlm(request.vlm_digest, tensors)


def _load_shared(trainer, content: RecordDict) -> dict[str, Tensor]:
    tensors = read_tensors(content, "arrays")
    expected = {name: tensor.shape for name, tensor in trainer.shared().items()}
    if tensors is None or {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise Declined("the model in the message does not fit the study's settings in this release")
    trainer.load_shared(tensors)
    return tensors


def _check_finite(shared: Mapping[str, Tensor]) -> None:
    import torch

    if not all(bool(torch.isfinite(tensor).all()) for tensor in shared.values()):
        raise Declined("training gave weights that are not finite; the state before is kept", diverged=True)


def _prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}.{name}": value for name, value in metrics.items()}


def _metrics(values: Mapping[str, float]) -> MetricRecord:
    return MetricRecord({name: value if isinstance(value, int) else float(value) for name, value in values.items()})


UNUSABLE_FILE = "this site's own file has a mistake; its client tells which"
_UNRECORDED = "this site cannot write its audit log, and lets nothing leave unrecorded"

_KINDS = {"query": _query, "train": _train, "evaluate": _evaluate}
