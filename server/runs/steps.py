"""steps.json: how far sites of this machine are in the round that is trained, for who looks on from another process.

Only a simulation has it: what a hospital has made of a round it does not tell. It is written anew while steps are made,
once a second at most, without waiting for the disk, and goes with the round.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from feddusss.timeleft import of_steps

FILE = "steps.json"
EVERY_S = 1.0


class Steps(NamedTuple):
    """How far a site is. Moments are in seconds since 1970."""

    step: int
    """That was finished, from 1."""
    steps: int
    """Of this round."""
    at: float
    first: int
    """The first step that was heard of."""
    first_at: float

    def seconds_left(self, now: float) -> float | None:
        """Until the site's last step of the round; None before there are two."""
        left = of_steps((self.first, self.first_at), self.step, self.steps, self.at)
        return None if left is None else max(0.0, left - (now - self.at))


class StepsFile:
    """Writes the file. A disk that is full does not stop the study."""

    def __init__(self, folder: Path):
        self._path = Path(folder) / FILE
        self._where: dict[str, Any] = {}
        self._sites: dict[str, Steps] = {}
        self._written = 0.0

    def begin_round(self, phase: str, round: int) -> None:
        """No step of this round has been made."""
        self.clear()
        self._where = {"phase": phase, "round": round}

    def made(self, site: str, step: int, steps: int) -> None:
        """`site` finished step `step` of `steps`."""
        now, before = time.time(), self._sites.get(site)
        if before is None or step <= before.step:
            before = Steps(step, steps, now, step, now)
        self._sites[site] = Steps(step, steps, now, before.first, before.first_at)
        if not 0 <= now - self._written < EVERY_S:
            self._written = now
            self._write()

    def clear(self) -> None:
        """No round is trained."""
        self._sites = {}
        self._written = 0.0
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        temporary = self._path.with_name(f".{FILE}.tmp")
        with suppress(OSError):
            temporary.write_text(json.dumps({**self._where, "sites": self._sites}) + "\n", encoding="utf-8")
            temporary.replace(self._path)


def read_steps(folder: Path, phase: str, round: int) -> dict[str, Steps]:
    """What the file tells of this round, by site; empty where there is none, or it is of another round."""
    try:
        told = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
        if not isinstance(told, Mapping) or (told.get("phase"), told.get("round")) != (phase, round):
            return {}
        return {str(site): _checked(values) for site, values in told["sites"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _checked(values: Any) -> Steps:
    """Raises ValueError or TypeError: it is no such line."""
    step, steps, at, first, first_at = values
    told = Steps(int(step), int(steps), float(at), int(first), float(first_at))
    if not 0 <= told.step <= told.steps:
        raise ValueError(f"step {told.step} of {told.steps}")
    return told
