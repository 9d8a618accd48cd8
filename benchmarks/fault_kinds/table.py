"""The table of faults: what one is, what came of it, and how a function is added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fault_lab import Lab, NotSurvived, lost, recovery


@dataclass(frozen=True)
class Outcome:
    """What a fault did."""

    lost: str
    recovery_s: float | None = None
    """From the fault (or from its end, where it lasts) until a round with all sites was saved; None: not applicable."""
    equal: bool | None = None
    """Whether the final model was compared with the undisturbed one, and was the same."""


@dataclass(frozen=True)
class Fault:
    name: str
    title: str
    do: Callable[[Lab, str], Outcome]
    quick: bool


ALL: list[Fault] = []


def fault(title: str, *, quick: bool = False):
    """Adds a function to the table. It does the fault and raises NotSurvived."""

    def add(do: Callable[[Lab, str], Outcome]) -> Callable[[Lab, str], Outcome]:
        ALL.append(Fault(do.__name__, title, do, quick))
        return do

    return add


def without_victim(out: Path, since: float, reason: str = "") -> Outcome:
    """The outcome where cedar missed rounds and came back.

    Raises:
        NotSurvived: it missed none, for another reason, its name is not in the log, or it never came back.
    """
    missed = lost(out)
    if not missed:
        raise NotSurvived("no round was done without cedar: the fault did not happen")
    if reason and not any(reason in told for told in missed.values()):
        raise NotSurvived(f"cedar was left out for another reason: {missed}")
    if "cedar:" not in (out / "log.txt").read_text():
        raise NotSurvived("the log does not name cedar")
    seconds = recovery(out, since)
    if seconds is None:
        raise NotSurvived("cedar did not come back into a round")
    told = "; ".join(sorted(set(missed.values())))
    return Outcome(f"cedar's part of round{'s' * (len(missed) > 1)} {', '.join(map(str, missed))} ({told})", seconds)


def resumed(lab: Lab, name: str, out: Path, since: float, lost: str) -> Outcome:
    """Go on with a study that was interrupted, to the weights of the undisturbed run."""
    with lab.study(name, resume=True):
        pass
    lab.check_equal(out)
    return Outcome(lost, recovery(out, since), True)
