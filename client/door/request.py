"""What a message may ask of a site, parsed strictly: nothing in it is trusted before it is checked here."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from client.declined import Declined
from dusss_core.config import TrainingConfig
from dusss_core.objectives import misfit
from dusss_core.phases import Phase
from feddusss import wire

if TYPE_CHECKING:
    from flwr.app import ConfigRecord, RecordDict
    from torch import Tensor

_RUN_KEY = re.compile(r"[0-9a-f]{16,64}")
_DIGEST = re.compile(r"([0-9a-f]{64})?")
_MOST_ROUNDS = 10**6


@dataclass(frozen=True)
class Request:
    """The settings of one message."""

    training: TrainingConfig
    training_digest: str
    run_key: str
    """Names the run; the site's private state is kept by it."""
    phase: Phase = Phase.SEGMENT
    round: int = 1
    """The round to train; for `what: test` the round that made the model."""
    vlm_digest: str = ""
    """SHA-256 of the final vision-language model; empty before there is one."""
    vlm_round: int = 0
    """The round of pretraining that made it."""
    what: str = "train"
    """train, val (validate the model) or test (evaluate the final student)."""
    wire: str = "float32"
    """Type in which learned weights come and are wanted back; see `feddusss.wire`."""
    charges: int = 0
    """How many charges of this site's privacy ledger the coordinator has seen."""


def read_request(content: RecordDict) -> Request:
    """The settings of a message.

    Raises:
        Declined: something is missing or not allowed.
    """
    record = content.config_records.get("config")
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
    return Request(
        training=training,
        training_digest=hashlib.sha256(text.encode()).hexdigest(),
        run_key=_text(record, "run_key", _RUN_KEY),
        phase=Phase(_text(record, "phase", re.compile("|".join(Phase)), Phase.SEGMENT)),
        round=_round(record, "round", 1),
        vlm_digest=_text(record, "vlm_digest", _DIGEST, ""),
        vlm_round=_round(record, "vlm_round", 0),
        what=_text(record, "what", re.compile("train|val|test"), "train"),
        wire=_text(record, "wire", re.compile("|".join(wire.WIRES)), "float32"),
        charges=_round(record, "charges", 0),
    )


def read_tensors(content: RecordDict, name: str) -> dict[str, Tensor] | None:
    """The tensors of the record `name`, rounded ones as float32; None if the message has no such record.

    Raises:
        Declined: they cannot be decoded.
    """
    record = content.array_records.get(name)
    if record is None:
        return None
    try:
        return wire.widened(wire.unpack(record))
    except wire.Unreadable as problem:
        raise Declined(f"'{name}' in the message: {problem}") from None


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
