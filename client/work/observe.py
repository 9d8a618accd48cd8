"""Lets whoever runs a site in its own process (the simulation) look on: steps as they are made, failures in full.

Nothing here is part of an answer. Outside a simulation nobody listens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Step = Callable[[int, int, float], None]
Failure = Callable[[Exception], None]

_step: ContextVar[Step | None] = ContextVar("step", default=None)
_failure: ContextVar[Failure | None] = ContextVar("failure", default=None)


@contextmanager
def observed(step: Step | None, failure: Failure | None) -> Iterator[None]:
    """Have `step(step, steps, loss)` and `failure(error)` called while the block runs."""
    tokens = _step.set(step), _failure.set(failure)
    try:
        yield
    finally:
        _step.reset(tokens[0])
        _failure.reset(tokens[1])


def step_made(step: int, steps: int, loss: float) -> None:
    """A trainer's progress callback."""
    if (listener := _step.get()) is not None:
        listener(step, steps, loss)


def failed(error: Exception) -> None:
    """Work on a message ended with `error`."""
    if (listener := _failure.get()) is not None:
        listener(error)
