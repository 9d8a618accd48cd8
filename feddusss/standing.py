"""What a site says that has not answered yet, when a coordinator asks: whether it is busy with another study.

The question is a message of its own kind and holds nothing. The answer is one record with one word: the other study's
name, or none where the site is at work for the study that asks, or at nothing. Both studies came over one SuperLink, so
that whoever asks could see the name there. Of a study that came another way, to another client, nothing is known here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from feddusss import wire

if TYPE_CHECKING:
    from flwr.app import RecordDict

KIND = "query.standing"
"""Of the message that asks."""
STEP = "query.step"
"""Of a small step of secure aggregation: a part of a round, that waits its turn as the round does."""
UNNAMED = "another study"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""As a study file has it."""


def shown(study: object) -> str:
    """A study's name, if it can be one."""
    return study if isinstance(study, str) and _NAME.fullmatch(study) else UNNAMED


def told(busy_with: str) -> RecordDict:
    """The answer of a site.

    Args:
        busy_with: the other study that it is at work for; empty: none.
    """
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({"standing": ConfigRecord({"busy": busy_with})})


def read(content: RecordDict) -> str | None:
    """The other study that a site says it is busy with, empty for none; None where it does not say."""
    record = wire.config_records(content).get("standing")
    busy = None if record is None else record.get("busy")
    if not isinstance(busy, str):
        return None
    return shown(busy) if busy else ""
