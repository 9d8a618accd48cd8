"""The way in: a message is recorded, read strictly and judged by the site's own file, once, before any work.

Nothing in a message is trusted before it is checked here. What comes out is a `Judged` request, with its tensors
decoded; for as long as it is worked on, it has the site's lock (no query needs that), and no more memory than the
site allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from client.consent.book import Book
from client.consent.proposal import Proposal
from client.declined import Declined
from client.door import audit, policy
from client.door.machine import held
from client.door.request import Judged, Request, Step
from client.state.chain import sha256
from client.state.store import SiteState, locked
from dusss_core.config import TrainingConfig
from dusss_core.files import digest_of_tensors
from dusss_core.objectives import misfit
from dusss_core.phases import Phase
from dusss_core.quota import bounded
from feddusss import compression, wire
from feddusss.terms import MOST_CHARACTERS, Terms
from sites.config import SiteConfig

if TYPE_CHECKING:
    from flwr.app import ConfigRecord, RecordDict
    from torch import Tensor

_RUN_KEY = re.compile(r"[0-9a-f]{16,64}")
_DIGEST = re.compile(r"([0-9a-f]{64})?")
_TERMS = re.compile(rf"(?s).{{0,{MOST_CHARACTERS}}}")
_MOST_ROUNDS = 10**6
_STEPS = ("keys", "deal", "train", "vote", "reveal")
_ATTEMPT = re.compile(r"[0-9a-f]{32}")
_MOST_NAMES = 10
"""Of a message's records, which are three at most in any that is answered."""


@contextmanager
def admitted(site: SiteConfig, site_file: Path, kind: str, content: RecordDict) -> Iterator[Judged]:
    """Let a message in, for as long as the block runs.

    Args:
        kind: query, train or evaluate.
        content: the message's records.

    Raises:
        Declined: the message is not of the right form, goes beyond a limit of the site, or the block took more memory
            than the site allows; or another process is working for the site.
        Unrecorded: the message could not be written to the audit log.
        NoRoom: the block wrote more than the site allows; nothing of that is there.
        UserError: this release cannot build the networks.
    """
    audit.record(site.state_dir, "message", kind=kind, **_told(content))
    request = read(kind, content)
    if request.audit_head:
        audit.check_head(site.state_dir, request.audit_head)
    # what is still written when the block ends is waited for, with the lock held
    most = site.limits.max_disk_gb
    with (
        # who is there is told also while the worker trains for another study; it writes nothing that one round needs
        nullcontext() if kind == "query" and request.step is None else locked(site.state_dir),
        bounded(site.state_dir, None if most is None else most * 1e9),
        held(site.limits, site.device),
        ThreadPoolExecutor(1) as disk,
    ):
        allowed = policy.judge(site, request)
        _check_approval(site, request)
        state = SiteState(site.state_dir, request.training.study, request.run_key)
        if kind == "evaluate":
            policy.check_evaluations(site, state)
        yield Judged(
            **vars(request),
            site=site,
            site_file=Path(site_file),
            state=state,
            allowed=allowed,
            model=_model(content, request, state),
            model_sha256=_sha256(content, "arrays", request),
            layers=_tensors(content, "layers"),
            layers_sha256=_sha256(content, "layers", request),
            vlm=_tensors(content, "vlm"),
            disk=disk,
        )


def _check_approval(site: SiteConfig, request: Request) -> None:
    """Refuse what no person here has approved, and keep it for one to look at (`limits.approval`).

    Raises:
        Declined: it waits for approval, or does not say enough to be approved.
        Unrecorded: a new proposal could not be written to the audit log.
        UserError: it could not be kept.
    """
    if not site.limits.approval:
        return
    try:
        terms = Terms.model_validate_json(request.terms)
    except ValidationError:
        raise Declined(
            "the message does not say who takes part and what becomes of updates, and this site lets a person approve "
            "both (limits.approval)"
        ) from None
    book, proposal = Book(site.state_dir), Proposal(request.training, terms)
    if book.covers(proposal):
        if terms.federation.get("secure_aggregation") is True and request.kind == "train" and request.step is None:
            raise Declined(
                "the study that was approved here sums securely, and this message asks for an update outside of a sum"
            )
        return
    if book.ask(proposal):
        audit.record(site.state_dir, "approval asked for", study=proposal.study, digest=proposal.digest)
    raise Declined(f"waiting for approval at {site.site} (python -m client studies)")


def read(kind: str, content: RecordDict) -> Request:
    """The settings of a message.

    Raises:
        Declined: something is missing or not of the right form.
    """
    record = wire.config_records(content).get("config")
    if record is None:
        raise Declined("the message holds no settings")
    text = _text(record, "training", re.compile(r"(?s).{1,100000}"))
    try:
        training = TrainingConfig.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Declined(f"the study's settings are not valid in this release: '{where}': {first['msg']}") from None
    for name, part in (("vlm", training.vlm), ("student", training.student)):
        if part.weights is not None:
            raise Declined(f"the study names a file on this machine ({name}.weights)")
    if reason := misfit(training):
        raise Declined(reason)
    phase = Phase(_text(record, "phase", re.compile("|".join(Phase)), Phase.SEGMENT))
    what = _text(record, "what", re.compile("train|val|test"), "train")
    if kind == "evaluate" and what != "val" and phase != Phase.SEGMENT:
        # limits on training it further, and which of its figures may leave, are looked up by the phase
        raise Declined(f"the final student is one of phase '{Phase.SEGMENT}', and the message says '{phase}'")
    return Request(
        kind=kind,
        training=training,
        training_digest=sha256(text.encode()),
        run_key=_text(record, "run_key", _RUN_KEY),
        phase=phase,
        round=_round(record, "round", 1),
        vlm_digest=_text(record, "vlm_digest", _DIGEST, ""),
        vlm_round=_round(record, "vlm_round", 0),
        what=what,
        wire=_text(record, "wire", re.compile("|".join(wire.WIRES)), "float32"),
        codec=_codec(record),
        base=_text(record, "base", _DIGEST, ""),
        model_digest=_text(record, "model_digest", _DIGEST, ""),
        charges=_round(record, "charges", 0),
        study_digest=_text(record, "study_digest", _DIGEST, ""),
        terms=_text(record, "terms", _TERMS, ""),
        audit_head=_text(record, "audit_head", _DIGEST, ""),
        step=_step(kind, wire.config_records(content).get("secure")),
    )


def _step(kind: str, record: ConfigRecord | None) -> Step | None:
    if record is None:
        return None
    name, attempt = record.get("step"), record.get("attempt")
    weighting = record.get("weighting", "examples")
    if (
        name not in _STEPS
        or (kind == "train") != (name == "train")
        or kind == "evaluate"
        or not isinstance(attempt, str)
        or not _ATTEMPT.fullmatch(attempt)
        or weighting not in ("examples", "uniform")
    ):
        raise Declined("the message's part on secure aggregation is not one")
    return Step(name, attempt, record.get("body"), weighting)


def _text(record: ConfigRecord, key: str, pattern: re.Pattern, default: str | None = None) -> str:
    value: Any = record.get(key, default)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise Declined(f"'{key}' in the message is missing or not allowed")
    return value


def _round(record: ConfigRecord, key: str, lowest: int) -> int:
    value: Any = record.get(key, lowest)
    if type(value) is not int or not lowest <= value <= _MOST_ROUNDS:
        raise Declined(f"'{key}' in the message is not a round")
    return value


def _codec(record: ConfigRecord) -> compression.Codec | None:
    share: Any = record.get("topk_share", compression.SHARE)
    if type(share) is not float or not 0 < share <= 1:
        raise Declined("'topk_share' in the message is not a share")
    return compression.codec(str(record.get("wire")), share)


def _model(content: RecordDict, request: Request, state: SiteState) -> dict[str, Tensor] | None:
    """The model of the message, in full: where it holds a change, added to the model that it is a change of."""
    tensors = _tensors(content, "arrays")
    if tensors is None or request.codec is None:
        return tensors
    if request.base:
        base = state.reference(request.phase, request.base)
        if base is None:
            raise Declined("this site does not hold the model that the message tells a change of", lacks=True)
        with _readable("arrays"):
            tensors = compression.expand(request.codec, tensors, base)
    if request.model_digest and digest_of_tensors(tensors) != request.model_digest:
        # a damaged disk gives another sum; the whole model mends that
        raise Declined("the model does not have the digest that was announced", lacks=bool(request.base))
    return tensors


def _tensors(content: RecordDict, name: str) -> dict[str, Tensor] | None:
    """The tensors of the record `name`, rounded ones as float32; None if the message has no such record.

    They lie in the message's own bytes: nobody here writes to them.
    """
    record = wire.array_records(content).get(name)
    if record is None:
        return None
    with _readable(name):
        return wire.widened(wire.views(record))


def _sha256(content: RecordDict, name: str, request: Request) -> str:
    """Of the bytes of the record `name` as they came; empty without it, or outside of secure aggregation."""
    record = wire.array_records(content).get(name)
    if record is None or request.step is None:
        return ""
    with _readable(name):
        return sha256(wire.content(record))


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except wire.Unreadable as problem:
        raise Declined(f"'{name}' in the message: {problem}") from None


def _told(content: RecordDict) -> dict[str, Any]:
    """What a message holds, for the audit log. The message is not trusted: texts are cut, nothing is decoded."""
    config = wire.config_records(content).get("config") or {}
    training = config.get("training")
    named = {key: config.get(key) for key in ("run_key", "phase", "round", "what", "vlm_digest")}
    return {
        **{key: value for key, value in named.items() if value and isinstance(value, str | int)},
        "settings": sha256(training.encode()) if isinstance(training, str) else None,
        "records": sorted(wire.array_records(content))[:_MOST_NAMES],
        **({"secure": str(secure.get("step"))} if (secure := wire.config_records(content).get("secure")) else {}),
        "bytes": sum(wire.size(arrays) for arrays in wire.array_records(content).values()),
    }
