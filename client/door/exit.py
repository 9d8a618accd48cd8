"""The way out: an answer is recorded with all that it holds, and may leave only then; or the reason why it may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from client.declined import Declined
from client.door import audit
from client.state.chain import sha256
from client.state.store import write_log
from feddusss import wire
from sites.config import SiteConfig

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from client.door.request import Judged

UNRECORDED = "this site cannot write its audit log, and lets nothing leave unrecorded"


def let_out(request: Judged, reply: RecordDict, about: Mapping[str, Any]) -> RecordDict:
    """Record an answer, and hand it back to be sent, once all that the site must keep of it is on the disk.

    Args:
        about: what the audit log should say of it beyond what it holds.

    Raises:
        Unrecorded: it must not be sent.
        UserError: the site's private state could not be written.
    """
    told = {"kind": request.kind, "study": request.training.study, "phase": request.phase, "round": request.round}
    held = _held(reply)
    settle(request)
    head = audit.record(request.site.state_dir, "answer", **told, **about, **held)
    if request.step is None or request.step.name == "train":  # the small steps of a sum hold one record, as ever
        _tell_head(request.site, reply, head)
    write_log(request.site.state_dir, f"{request.kind} {request.phase} round {request.round}: answered")
    return reply


def settle(request: Judged) -> None:
    """Wait until all that a message writes is on the disk: before its answer leaves, or is noted as given.

    Raises:
        UserError: it is not there (disk full, no permission).
    """
    for write in request.writes:
        write.result()


def decline(site: SiteConfig | None, kind: str, why: Declined) -> RecordDict:
    """What is sent instead of an answer, recorded as far as it can be.

    Args:
        site: None if its file could not be read.
    """
    from flwr.app import ConfigRecord, RecordDict

    reason, head = str(why), ""
    accused = {"accuses": why.accuses} if why.accuses else {}
    proved = {"complaints": why.complaints} if why.complaints else {}
    noted = {"complaints": why.complaints.decode()} if why.complaints else {}
    if site is not None:
        write_log(site.state_dir, f"{kind}: declined: {reason}")
        try:
            head = audit.record(
                site.state_dir, "declined", kind=kind, reason=reason, abstains=why.abstains, **accused, **noted
            )
        except audit.Unrecorded:
            reason = UNRECORDED
    told = {"declined": reason, "abstains": why.abstains, "diverged": why.diverged}
    flags = {"spent": why.spent, "lacks": why.lacks, "exhausted": why.exhausted, "lost": why.lost}
    told |= {name: True for name, so in flags.items() if so}
    reply = RecordDict({"config": ConfigRecord({**told, **accused, **proved})})
    if site is not None and head:
        _tell_head(site, reply, head)
    return reply


def _tell_head(site: SiteConfig, reply: RecordDict, head: str) -> None:
    """The log's last hash goes with what is sent, so that lines cannot be taken out of the log in silence.

    Not where nothing leaves that was not paid for: it depends on all that the log says.
    """
    from flwr.app import ConfigRecord

    if site.privacy.epsilon is None:
        known = wire.config_records(reply).get("config") or {}
        reply["config"] = ConfigRecord({**known, "audit_head": head})


def _held(content: RecordDict) -> dict[str, Any]:
    """All that an answer holds: each tensor's size and the hash of its bytes as they travel, which are not copied."""
    tensors = {
        f"{record}.{name}": {
            "dtype": dtype,
            "shape": list(shape),
            "bytes": len(data),
            "sha256": sha256(data),
        }
        for record, arrays in wire.array_records(content).items()
        for name, (dtype, shape, data) in wire.contents(arrays).items()
    }
    return {
        "bytes": sum(wire.size(arrays) for arrays in wire.array_records(content).values()),
        "metrics": {k: v for metrics in wire.metric_records(content).values() for k, v in metrics.items()},
        "texts": {k: _told(v) for texts in wire.config_records(content).values() for k, v in texts.items()},
        "tensors": tensors,
    }


def _told(value: Any) -> Any:
    """A value of an answer; of bytes, which secure aggregation sends, the length and the hash."""
    return f"{len(value)} bytes, {sha256(value)}" if isinstance(value, bytes) else value
