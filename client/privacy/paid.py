"""The paid way to answer: nothing leaves but tensors that the site's ledger has paid for.

With them go three things that no picture has a part in: the declared number of records, the number of charges, and on a
refusal one sentence out of a fixed set. Figures of validation, training and evaluation, counts and seconds stay here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flwr.app import RecordDict

from client.declined import Declined
from client.door.exit import settle
from client.door.request import Judged
from client.privacy.ledger import FOLDER, Ledger
from client.state.store import write_log
from dusss_core.files import digest_of_tensors, make_private, write_bytes
from dusss_core.manifest import Record
from feddusss import flower, wire
from sites.config import SiteConfig

if TYPE_CHECKING:
    from torch import Tensor

ANSWERS = "answers"
KEPT_ANSWERS, KEPT_RUNS = 2, 4
"""Answers of a run that are kept, and the runs that were answered last: two studies may take turns, and either may ask
again."""
FAILED = "this site could not do it; its own log says more"
"""The one text about an error. Its kind, too, could tell of a record."""
LEDGER_IS_WRONG = "this site's privacy ledger must be looked after before anything leaves; its own log says more"


class Round(Protocol):
    """A round that can be paid for between its two steps: `client.work.training.Round`."""

    request: Judged
    records: list[Record]

    def prepare(self) -> dict[str, float]:
        """Load all that is trained on, and tell what the model scores."""

    def train(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Train; the tensors that travel, and figures."""


def train(round: Round) -> RecordDict:
    """The answer to a message that trains. The very same message is given the very same answer, which costs nothing.

    Raises:
        Declined: the data break what the site declares; the budget does not allow another round; as `round`.
        LedgerError, UserError: as `Ledger.charge`.
    """
    request = round.request
    _check_patients(request.site, round.records)
    if (answered := _given_before(request)) is not None:
        return answered
    figures = round.prepare()
    paid = _pay(request)
    update, trained = round.train()
    _keep_figures(request, "train", {**figures, **trained})
    reply = RecordDict({"arrays": wire.pack(update), "metrics": wire.figures(paid)})
    settle(request)
    _keep_answer(request, reply)
    return reply


def evaluate(request: Judged, bench: object, figures: Mapping[str, float]) -> RecordDict:
    """The answer to a message that evaluates: none of the figures."""
    _keep_figures(request, request.what, figures)
    return RecordDict({"metrics": wire.figures({})})


def query(request: Judged, bench: object) -> tuple[str, dict[str, int]]:
    """Role and counts as the coordinator is told them: from the site's own file alone."""
    return "train" if request.site.limits.phases else "evaluate", {"n_records": request.site.privacy.records}


def _check_patients(site: SiteConfig, records: Iterable[Record]) -> None:
    """Refuse data that break what the site declares of its patients, as far as the manifest names them."""
    seen: dict[str, int] = {}
    for record in records:
        if record.split == "train" and record.patient:
            seen[record.patient] = seen.get(record.patient, 0) + 1
    if max(seen.values(), default=0) > site.privacy.records_per_patient:
        raise Declined("a patient here has more training pictures than privacy.records_per_patient says", abstains=True)


def _pay(request: Judged) -> dict[str, int]:
    """Charge the whole round that is about to begin.

    Returns:
        The figures that may go with the paid-for tensors.
    """
    from dusss_core.privacy.mechanism import charge_of

    site = request.site
    entry = Ledger(site.state_dir, site.privacy).charge(
        charge_of(request.training, request.phase),
        study=request.training.study,
        run=request.run_key,
        phase=request.phase,
        round=request.round,
        message=_digest_of(request),
        vlm=request.vlm_digest if request.phase.takes_masks else "",
        seen=request.charges,
    )
    return {"num-examples": site.privacy.records, "ledger-charges": entry.number}


def _given_before(request: Judged) -> RecordDict | None:
    """The answer that was given to the very same message before: its bytes, which cost nothing more. None: no such."""
    from google.protobuf.message import DecodeError

    try:
        kept = _answer_path(request).read_bytes()
    except FileNotFoundError:
        return None
    digest, answer = kept[:32], kept[32:]
    if hashlib.sha256(answer).digest() != digest:
        return None  # a damaged copy: paid again
    try:
        return flower.recorddict_from_proto(flower.RecordDictProto.FromString(answer))
    except (DecodeError, ValueError):
        return None


def _keep_answer(request: Judged, answer: RecordDict) -> None:
    """Keep a paid-for answer, whole, before it leaves; older ones of its run, and those of older runs, are dropped."""
    path = _answer_path(request)
    make_private(path.parent)
    told = flower.recorddict_to_proto(answer).SerializeToString()
    write_bytes(path, hashlib.sha256(told).digest() + told)
    kept: dict[str, list[Path]] = {}
    for one in sorted(path.parent.glob("*.answer"), key=lambda other: other.stat().st_mtime_ns, reverse=True):
        run = one.stem.rpartition("-")[0]
        kept.setdefault(run, []).append(one)
    for place, answers in enumerate(kept.values()):
        for old in answers[KEPT_ANSWERS if place < KEPT_RUNS else 0 :]:
            old.unlink(missing_ok=True)


def _keep_figures(request: Judged, what: str, figures: Mapping[str, float]) -> None:
    """Write to the site's own log what does not leave it."""
    told = json.dumps({name: round(float(value), 6) for name, value in figures.items()})
    write_log(request.site.state_dir, f"{what} {request.phase} round {request.round}: figures that stay here: {told}")


def _answer_path(request: Judged) -> Path:
    return request.site.state_dir / FOLDER / ANSWERS / f"{request.run_key}-{_digest_of(request)}.answer"


def _digest_of(request: Judged) -> str:
    """Names all that an answer depends on, but for the site's own state: run, phase, round, settings and the model."""
    parts = (
        request.run_key,
        request.phase,
        request.round,
        request.training_digest,
        request.vlm_digest,
        request.vlm_round,
        request.wire,
        request.codec,
        digest_of_tensors(request.model or {}),
    )
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()
