"""What sites answer, checked before it is used: an answer is accepted, or refused with the site and the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.app import Array, Message
    from torch import Tensor

_METRIC_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_MOST_EXAMPLES = 10**8
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Reply:
    """One site's answer. `reason` is None if it was accepted."""

    site: str
    reason: str | None = None
    abstains: bool = False
    """The site cannot take part in this phase at all (no text, no training pictures); no failure."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    """The strings of the answer to a query: site, release, role, ..."""
    bytes_up: int = 0

    @property
    def accepted(self) -> bool:
        return self.reason is None

    @property
    def examples(self) -> float:
        """Number of training pictures, the site's weight."""
        return self.metrics["num-examples"]


class Refused(Exception):
    """Why an answer is not used."""

    def __init__(self, reason: str, *, abstains: bool = False):
        super().__init__(reason)
        self.abstains = abstains


def read_reply(site: str, message: Message | None, expected: Mapping[str, Tensor] | None = None) -> Reply:
    """Check one answer; never raises.

    Args:
        site: who was asked. By the coordinator's own map: a dead node's error reply does not name it.
        message: None if no answer came in time.
        expected: the tensors that were sent; the answer must hold the same names, shapes and dtypes, all finite, and
            a number of examples. None: an answer without tensors is expected.
    """
    try:
        content = _content(message)
        metrics = _metrics(content)
        texts = _texts(content)
        if expected is None:
            if content.array_records:
                raise Refused("sent tensors that nobody asked for")
            return Reply(site, metrics=metrics, texts=texts)
        tensors, size = _tensors(content, expected)
        _check_examples(metrics)
        return Reply(site, tensors=tensors, metrics=metrics, texts=texts, bytes_up=size)
    except Refused as refused:
        return Reply(site, reason=str(refused), abstains=refused.abstains)


def _content(message: Message | None):
    if message is None:
        raise Refused("no answer in time")
    if message.has_error():
        reason = (message.error.reason or "no reason given").strip().splitlines()
        raise Refused(f"error {message.error.code}: {reason[0][:300] if reason else 'no reason given'}")
    for record in message.content.config_records.values():
        if "declined" in record:
            raise Refused(_printable(record["declined"]), abstains=record.get("abstains") is True)
    return message.content


def _metrics(content) -> dict[str, float]:
    if len(content.metric_records) > 1:
        raise Refused("sent more than one metric record")
    metrics: dict[str, float] = {}
    for name, value in (next(iter(content.metric_records.values())) if content.metric_records else {}).items():
        if not _METRIC_NAME.fullmatch(name):
            raise Refused(f"metric name {_printable(name)!r} is not allowed")
        if isinstance(value, list):
            raise Refused(f"metric '{name}' is a list; only single figures are taken")
        if math.isfinite(value):
            metrics[name] = value
    return metrics


def _texts(content) -> dict[str, str]:
    records = content.config_records.values()
    return {_printable(k): _printable(v) for record in records for k, v in record.items() if isinstance(v, str)}


def _tensors(content, expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    if list(content.array_records) != ["arrays"]:
        raise Refused(f"tensor records {sorted(map(_printable, content.array_records))} instead of ['arrays']")
    arrays = content.array_records["arrays"]
    missing, extra = sorted(expected.keys() - arrays.keys()), sorted(arrays.keys() - expected.keys())
    if missing:
        raise Refused(f"tensor '{missing[0]}' is missing ({len(missing)} in all)")
    if extra:
        raise Refused(f"tensor '{_printable(extra[0])}' was not asked for ({len(extra)} in all)")
    return {name: _tensor(name, arrays[name], tensor) for name, tensor in expected.items()}, array_bytes(arrays)


def _tensor(name: str, array: Array, expected: Tensor) -> Tensor:
    import torch

    wanted = (str(expected.dtype).removeprefix("torch."), tuple(expected.shape))
    declared = (array.dtype, tuple(array.shape))
    if declared != wanted:
        raise Refused(f"tensor '{name}' is {_describe(*declared)} instead of {_describe(*wanted)}")
    if len(array.data) > expected.numel() * expected.element_size() + _HEADER_BYTES:
        raise Refused(f"tensor '{name}' carries {len(array.data)} bytes, too many for its shape")
    try:
        values = array.numpy()
    except Exception:
        raise Refused(f"tensor '{name}' cannot be decoded") from None
    if (str(values.dtype), values.shape) != wanted:
        raise Refused(
            f"tensor '{name}' holds {_describe(str(values.dtype), values.shape)} instead of {_describe(*wanted)}"
        )
    tensor = torch.from_numpy(values)
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise Refused(f"tensor '{name}' holds NaN or infinity")
    return tensor


def _check_examples(metrics: Mapping[str, float]) -> None:
    examples = metrics.get("num-examples")
    if examples is None:
        raise Refused("'num-examples' is missing")
    if not 0 < examples <= _MOST_EXAMPLES:
        raise Refused(f"'num-examples' is {examples:g}")


def array_bytes(arrays: Mapping[str, Array]) -> int:
    """Bytes of the tensors of a message, as they travel."""
    return sum(len(array.data) for array in arrays.values())


def _describe(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype[:20]} {'x'.join(map(str, shape)) or 'scalar'}"


def _printable(text: object) -> str:
    """Text of a site for logs and reports: one line, no control characters, not long."""
    return "".join(c if c.isprintable() else " " for c in str(text))[:300]
