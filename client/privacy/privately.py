"""What changes where a site asks for differential privacy: nothing leaves but tensors that its ledger has paid for.

With them go three things that no picture has a part in: the declared number of records, the number of charges, and on a
refusal one sentence out of a fixed set. Figures of validation, training and evaluation, counts and seconds stay here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from flwr.app import RecordDict

from client.declined import Declined
from client.door.request import Request, read_tensors
from client.privacy import ledger
from client.state.store import make_private, write_log
from dusss_core.files import digest_of_tensors, write_bytes
from sites.config import SiteConfig
from sites.manifest import Record

ANSWERS = "answers"
KEPT_ANSWERS = 2
FAILED = "this site could not do it; its own log says more"
"""The one text about an error. Its kind, too, could tell of a record."""
LEDGER_IS_WRONG = "this site's privacy ledger must be looked after before anything leaves; its own log says more"


def is_private(site: SiteConfig) -> bool:
    """Whether this site trains with differential privacy, and not at all without."""
    return site.privacy.epsilon is not None


def counts(site: SiteConfig) -> dict[str, int]:
    """What the coordinator is told in place of the true counts."""
    return {"n_records": site.privacy.records}


def role(site: SiteConfig) -> str:
    """From the site's own file alone."""
    return "train" if site.limits.phases else "evaluate"


def check_patients(site: SiteConfig, records: Iterable[Record]) -> None:
    """Refuse data that break what the site declares of its patients, as far as the manifest names them.

    Raises:
        Declined: with the setting.
    """
    seen: dict[str, int] = {}
    for record in records:
        if record.split == "train" and record.patient:
            seen[record.patient] = seen.get(record.patient, 0) + 1
    if max(seen.values(), default=0) > site.privacy.records_per_patient:
        raise Declined("a patient here has more training pictures than privacy.records_per_patient says", abstains=True)


def pay(site: SiteConfig, request: Request, content: RecordDict) -> dict[str, int]:
    """Charge the whole round that is about to begin.

    Returns:
        The figures that may go with the paid-for tensors.

    Raises:
        Declined, LedgerError, UserError: as `Ledger.charge`; nothing may be trained.
    """
    from dusss_core.privacy.mechanism import charge_of

    entry = ledger.Ledger(site.state_dir, site.privacy).charge(
        charge_of(request.training, request.phase),
        study=request.training.study,
        run=request.run_key,
        phase=request.phase,
        round=request.round,
        message=_digest_of(request, content),
        vlm=request.vlm_digest if request.phase.takes_masks else "",
        seen=request.charges,
    )
    return {"num-examples": site.privacy.records, "ledger-charges": entry.number}


def paid_answer(site: SiteConfig, request: Request, content: RecordDict) -> RecordDict | None:
    """The answer that was given to the very same message before: its bytes, which cost nothing more. None: no such."""
    from flwr.common.serde import recorddict_from_proto
    from flwr.proto.recorddict_pb2 import RecordDict as Proto
    from google.protobuf.message import DecodeError

    path = _answer_path(site, request, content)
    try:
        kept = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, answer = kept[:32], kept[32:]
    if hashlib.sha256(answer).digest() != digest:
        return None  # a damaged copy: paid again
    try:
        return recorddict_from_proto(Proto.FromString(answer))
    except (DecodeError, ValueError):
        return None


def keep_answer(site: SiteConfig, request: Request, content: RecordDict, answer: RecordDict) -> None:
    """Keep a paid-for answer, whole, before it leaves; older ones are dropped.

    Raises:
        UserError: it could not be written.
    """
    from flwr.common.serde import recorddict_to_proto

    path = _answer_path(site, request, content)
    make_private(path.parent)
    told = recorddict_to_proto(answer).SerializeToString()
    write_bytes(path, hashlib.sha256(told).digest() + told)
    kept = sorted(path.parent.glob("*.answer"), key=lambda other: other.stat().st_mtime_ns)
    for old in kept[:-KEPT_ANSWERS]:
        old.unlink(missing_ok=True)


def keep_figures(site: SiteConfig, request: Request, what: str, figures: Mapping[str, float]) -> None:
    """Write to the site's own log what does not leave it."""
    told = json.dumps({name: round(float(value), 6) for name, value in figures.items()})
    write_log(site.state_dir, f"{what} {request.phase} round {request.round}: figures that stay here: {told}")


def _answer_path(site: SiteConfig, request: Request, content: RecordDict) -> Path:
    return site.state_dir / ledger.FOLDER / ANSWERS / f"{_digest_of(request, content)}.answer"


def _digest_of(request: Request, content: RecordDict) -> str:
    """Names all that an answer depends on, but for the site's own state: run, phase, round, settings and the model."""
    parts = (
        request.run_key,
        request.phase,
        request.round,
        request.training_digest,
        request.vlm_digest,
        request.vlm_round,
        request.wire,
        digest_of_tensors(read_tensors(content, "arrays") or {}),
    )
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()
