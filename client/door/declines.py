"""Tells the person at the hospital what was declined and why, in one line each, and never in a flood."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dusss_core.outside import shown

_AGAIN_S = 60.0
_MOST_REASONS = 20
"""In a minute. A reason may quote what came, so whoever sends can make new ones."""
_OTHERS = "other reasons (`python -m client audit` tells them)"


@dataclass
class _Told:
    at: float
    more: int = 0


class Declines:
    """What was declined lately: a reason is told at once, and for a minute after that it is counted.

    Args:
        say: told one line.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._told: dict[str, _Told] = {}

    def declined(self, what: str, reason: str) -> None:
        """A request was declined.

        Args:
            what: the request, as `training segment round 3`.
            reason: what the coordinator was told.
        """
        self.tell_counts()
        reason = shown(reason)
        if reason not in self._told and len(self._told) >= _MOST_REASONS:
            reason = _OTHERS
        if reason in self._told:
            self._told[reason].more += 1
            return
        self._told[reason] = _Told(time.monotonic())
        self._say(f"declined ({what}): {reason}")

    def tell_counts(self) -> None:
        """Tell how often what was told a minute ago has come again. To be called now and then."""
        over = time.monotonic() - _AGAIN_S
        for reason, told in [(reason, told) for reason, told in self._told.items() if told.at <= over]:
            del self._told[reason]
            if told.more:
                self._say(f"declined {told.more} more time{'s' * (told.more != 1)} in a minute: {reason}")
