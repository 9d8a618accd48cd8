"""How long something still takes, from what is done of it; and a length of time as a person reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Rounds:
    """How long a phase still takes, from its rounds. Moments are seconds of one clock, whichever it is."""

    def __init__(self) -> None:
        self._round = self._rounds = 0
        self._took: list[float] = []
        self._began: float | None = None

    def begin_phase(self, rounds: int, done: int) -> None:
        """A phase of `rounds` rounds begins or goes on, `done` of which are done."""
        self._round, self._rounds, self._took, self._began = done, rounds, [], None

    def begin_round(self, round: int, rounds: int, at: float) -> None:
        """Round `round` (from 1) begins, or asks again for what it lacks."""
        if self._began is None or round != self._round:
            self._began = at
        self._round, self._rounds = round, rounds

    def end_round(self, at: float) -> None:
        """The round is over."""
        if self._began is not None:
            self._took.append(at - self._began)
            self._began = None

    def left(self, now: float) -> float | None:
        """Seconds until the last round is done, estimated from the latest ones; None before the first one is over."""
        if (one := self._one()) is None:
            return None
        going = now - self._began if self._began is not None else 0.0
        to_come = self._rounds - self._round + (self._began is not None)
        return max(0.0, to_come * one - going)

    def left_in_round(self, now: float) -> float | None:
        """Seconds until the round that goes on is done, 0 when it takes longer than the latest ones; None where none
        goes on, or before the first one is over."""
        one = self._one()
        return None if one is None or self._began is None else max(0.0, one - (now - self._began))

    def _one(self) -> float | None:
        """Seconds that a round takes."""
        # the first round also fills caches; it counts only while there is no other
        recent = (self._took[1:] or self._took)[-5:]
        return sum(recent) / len(recent) if recent else None


def of_steps(first: tuple[int, float], done: int, steps: int, now: float) -> float | None:
    """Seconds until `steps` are made of which `done` are; None before two of them are.

    Args:
        first: an earlier step, and the moment when it was made.
    """
    made, since = done - first[0], now - first[1]
    return (steps - done) * since / made if made > 0 else None


def duration(seconds: float) -> str:
    """2.5 s; 14 s; 3 min 05 s; 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Seldom:
    """Tells of steps at most every `every_s` seconds, but of the first and the last of each round.

    Args:
        tell: called with (step, steps, ...).
    """

    def __init__(self, tell: Callable[..., Any], every_s: float, clock: Callable[[], float]):
        self._tell, self._every_s, self._clock = tell, every_s, clock
        self._told = 0.0

    def __call__(self, step: int, steps: int, *more: Any) -> None:
        now = self._clock()
        if step in (1, steps) or now - self._told >= self._every_s:
            self._told = now
            self._tell(step, steps, *more)
