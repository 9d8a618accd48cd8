"""What sites answer, checked before it is used: an answer is accepted, or refused with the site and the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dusss_core.errors import UserError
from feddusss import compression
from feddusss import wire as codec
from feddusss.compression import Codec
from server.rounds import figures
from server.rounds.figures import printable
from server.rounds.screening import impossible_statistic, moments, squared_distance

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Message
    from torch import Tensor

    from server.rounds.spool import Spool

LOST = "lost"
"""No answer, or an error of Flower's or of the app: asking again may help."""
DIVERGED = "diverged"
"""The loss or the weights are not finite: other settings may help."""
EXHAUSTED = "exhausted"
"""It takes more memory than the site has: smaller batches may help."""
MISCOUNTED = "miscounted"
"""More training pictures than the site said it has: it may have got new ones."""
LIMITED = "limited"
"""It goes beyond what the site's own file allows: asking again does not help, other settings or another file may."""
LACKS = "lacks"
"""The site does not hold the model that it was sent a change of: it can be sent the whole one."""

SPENT = "spent"
"""Under secure aggregation: the site's part of this round may be in a sum already, and is given once."""
MASKED = "masked"
"""As a `wire`: every tensor as 64-bit integers that mean nothing by themselves."""

_LIMIT = re.compile(r"\blimits\.(?!hours\b|approval\b)[a-z_]+\)")
"""How a site names the limit that a message goes beyond; its hours come round by themselves, and so does approval."""
_MOST_TEXTS = 64
_NODE_UNAVAILABLE = 5
"""Flower's error code for a node whose heartbeats have stopped."""
TOO_LARGE = 413
"""Our SuperLink's and our grid's error code for an answer that goes beyond its quota."""
UNREADABLE = 422
"""Our grid's for one whose objects are no message."""
_HEADER_BYTES, _HEADER_BYTES_PER_TENSOR = 4096, 512


@dataclass(frozen=True)
class Reply:
    """One site's answer. `reason` is None if it was accepted."""

    site: str
    reason: str | None = None
    abstains: bool = False
    """The site cannot take part in this phase at all (no text, no training pictures); no failure."""
    kind: str = ""
    """Of a refused answer: LOST, DIVERGED, EXHAUSTED, MISCOUNTED, LIMITED, LACKS, SPENT, or empty."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Read from the disk when they are asked for, where they were put there. Not to be written to."""
    norm: float = 0.0
    """L2 norm of the change of the learned weights."""
    moments: dict[str, float] = field(default_factory=dict)
    """By normalisation layer: see `server.rounds.screening.moments`."""
    metrics: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    """The strings of the answer to a query: site, release, role, ..."""
    bytes_up: int = 0
    accuses: frozenset[str] = frozenset()
    """Of a refusal under secure aggregation: the sites that it lays the refusal to, which need not be members."""
    complaints: bytes = b""
    """Beside it, what it proves, if anything: not parsed yet."""

    @property
    def accepted(self) -> bool:
        return self.reason is None

    @property
    def examples(self) -> float:
        """Number of training pictures, the site's weight."""
        return self.metrics["num-examples"]


class Refused(Exception):
    """Why an answer is not used."""

    def __init__(
        self,
        reason: str,
        *,
        abstains: bool = False,
        kind: str = "",
        accuses: frozenset[str] = frozenset(),
        complaints: bytes = b"",
    ):
        super().__init__(reason)
        self.complaints = complaints
        self.abstains = abstains
        self.kind = kind
        self.accuses = accuses


def read_reply(
    site: str,
    message: Message | None,
    expected: Mapping[str, Tensor] | None = None,
    *,
    wire: str = "float32",
    compressed: Codec | None = None,
    most_examples: float = figures.MOST_PICTURES,
    counts: Mapping[str, int] | None = None,
    spool: Spool | None = None,
    silent: str = "",
) -> Reply:
    """Check one answer; whatever it is, nothing is raised.

    Args:
        site: who was asked. By the coordinator's own map: a dead node's error reply does not name it.
        message: None if no answer came in time.
        expected: the global model of the round; the answer must hold the same names, shapes and types, all finite,
            and a number of examples. None: an answer without tensors is expected.
        wire: the type in which learned weights come back; see `feddusss.wire`. MASKED: under secure aggregation.
        compressed: how changes come back encoded, in place of that; None: they do not.
        most_examples: training pictures that the site said it has: it can claim no more weight than that.
        counts: what the site said it has, which its figures cannot go beyond.
        spool: where the tensors of an accepted answer are put, so that the message can be let go. None: they stay in
            the message's own memory.
        silent: why no answer came in time, as far as the site has told.

    Raises:
        UserError: the disk with the spool is full.
    """
    try:
        content = _content(message, silent)
        metrics = _metrics(content, counts)
        texts = _texts(content)
        if expected is None:
            if codec.array_records(content):
                raise Refused("sent tensors that nobody asked for")
            return Reply(site, metrics=metrics, texts=texts)
        record = _record(content)
        tensors = decoded(record, expected, wire, compressed)
        plain = wire != MASKED
        norm = _checked_norm(tensors, expected) if plain else 0.0
        layers = moments(tensors) if plain else {}
        _check_examples(metrics, most_examples)
        if spool is not None:
            tensors = spool.put(tensors)
        size = codec.size(record)
        return Reply(site, tensors=tensors, norm=norm, moments=layers, metrics=metrics, texts=texts, bytes_up=size)
    except Refused as refused:
        return Reply(
            site,
            reason=str(refused),
            abstains=refused.abstains,
            kind=refused.kind,
            accuses=refused.accuses,
            complaints=refused.complaints,
        )
    except UserError:
        raise
    except Exception as error:
        # one site's answer, whatever is wrong with it, ends no study
        return Reply(site, reason=f"its answer cannot be read ({type(error).__name__})")


def _content(message: Message | None, silent: str):
    if message is None:
        raise Refused(f"no answer in time: {silent}" if silent else "no answer in time", kind=LOST)
    if message.has_error():
        if message.error.code == _NODE_UNAVAILABLE:
            raise Refused("its connection was lost", kind=LOST)
        reason = (message.error.reason or "no reason given").strip().splitlines()
        told = reason[0][:300] if reason else "no reason given"
        if message.error.code in (TOO_LARGE, UNREADABLE):
            raise Refused(printable(told))
        raise Refused(f"error {message.error.code}: {printable(told)}", kind=LOST)
    for record in codec.config_records(message.content).values():
        if "declined" in record:
            kinds = (DIVERGED, SPENT, LACKS, EXHAUSTED, LOST)
            told = printable(record["declined"]).strip() or "it gave no reason"
            beyond = LIMITED if _LIMIT.search(told) else ""
            kind = next((kind for kind in kinds if record.get(kind) is True), beyond)
            listed = record.get("accuses")
            accuses = frozenset(name for name in (listed if isinstance(listed, list) else ()) if isinstance(name, str))
            abstains, sent = record.get("abstains") is True, record.get("complaints")
            complaints = sent if isinstance(sent, bytes) else b""
            raise Refused(told, abstains=abstains, kind=kind, accuses=accuses, complaints=complaints)
    return message.content


def _metrics(content, counts: Mapping[str, int] | None) -> dict[str, float]:
    sent = list(codec.metric_records(content).values())
    if len(sent) > 1:
        raise Refused("sent more than one metric record")
    try:
        return figures.checked(sent[0] if sent else {}, counts)
    except figures.Impossible as impossible:
        raise Refused(str(impossible), kind=MISCOUNTED if impossible.beyond_count else "") from None


def _texts(content) -> dict[str, str]:
    records = list(codec.config_records(content).values())
    if sum(map(len, records)) > _MOST_TEXTS:
        raise Refused(f"more than {_MOST_TEXTS} texts")
    return {printable(k): printable(v) for record in records for k, v in record.items() if isinstance(v, str)}


def decoded(
    record: ArrayRecord, expected: Mapping[str, Tensor], wire: str, compressed: Codec | None = None
) -> dict[str, Tensor]:
    """The site's model out of what travelled, with the names, shapes and types of `expected`.

    Whatever a `wire` does to numbers is undone here and nowhere else. What travelled whole is not copied, and must not
    be written to. Whether the numbers are finite is not looked at.

    Raises:
        Refused: it is something else.
    """
    if compressed is not None:
        return _expanded(record, expected, compressed)
    most = sum(
        tensor.numel() * (8 if wire == MASKED else tensor.element_size()) + _HEADER_BYTES_PER_TENSOR
        for tensor in expected.values()
    )
    try:
        tensors = codec.views(record, most + _HEADER_BYTES)
    except codec.Unreadable as problem:
        raise Refused(f"tensors: {problem}") from None
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise Refused(f"tensor '{missing[0]}' is missing ({len(missing)} in all)")
    if extra:
        raise Refused(f"tensor '{printable(extra[0])}' was not asked for ({len(extra)} in all)")
    for name, tensor in expected.items():
        _check_type(name, tensors[name], tensor, wire)
    tensors = {name: tensors[name] for name in expected}
    return tensors if wire in ("float32", MASKED) else codec.added(codec.widened(tensors), expected)


def _record(content) -> ArrayRecord:
    arrays = codec.array_records(content)
    if list(arrays) != ["arrays"]:
        raise Refused(f"tensor records {sorted(map(printable, arrays))} instead of ['arrays']")
    return arrays["arrays"]


def _expanded(record, expected: Mapping[str, Tensor], compressed: Codec) -> dict[str, Tensor]:
    most = compression.most_bytes(compressed, expected, _HEADER_BYTES_PER_TENSOR) + _HEADER_BYTES
    try:
        return compression.expand(compressed, codec.views(record, most), expected)
    except codec.Unreadable as problem:
        raise Refused(f"tensors: {problem}") from None


def _check_type(name: str, tensor: Tensor, expected: Tensor, wire: str) -> None:
    rounded = wire == "bfloat16" and codec.is_rounded(name, expected)
    dtype = "int64" if wire == MASKED else wire if rounded else _dtype(expected)
    wanted = dtype, tuple(expected.shape)
    found = _dtype(tensor), tuple(tensor.shape)
    if found != wanted:
        raise Refused(f"tensor '{name}' is {_describe(*found)} instead of {_describe(*wanted)}")


def _checked_norm(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """L2 norm of the change of the learned weights; a number that is not finite is refused on the way, by name."""
    square = 0.0
    for name, tensor in tensors.items():
        learned = not codec.is_statistic(name, expected[name])
        change = squared_distance(tensor, expected[name]) if learned else 0.0
        # the norm shows at no cost whether all is finite
        if learned and math.isfinite(change):
            square += change
        elif not codec.is_finite(tensor):
            raise Refused(f"tensor '{name}' holds NaN or infinity", kind=DIVERGED)
        elif not learned and (reason := impossible_statistic(name, tensor)):
            raise Refused(f"tensor '{name}' {reason}")
    return math.sqrt(square)


def _check_examples(metrics: Mapping[str, float], most: float) -> None:
    examples = metrics.get("num-examples")
    if examples is None:
        raise Refused("'num-examples' is missing")
    if not 0 < examples <= figures.MOST_PICTURES:
        raise Refused(f"'num-examples' is {examples:g}")
    if examples > most:
        raise Refused(
            f"'num-examples' is {examples:g}, more than the {most:g} training pictures that it said it has",
            kind=MISCOUNTED,
        )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _describe(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype[:20]} {'x'.join(map(str, shape)) or 'scalar'}"
