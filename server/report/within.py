"""What the followed page tells of the round that is trained: the steps of each site, or how long it is waited for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from feddusss.timeleft import duration
from server.runs.eventlog import SIMULATION, Progress
from server.runs.steps import Steps


def within_round(progress: Progress, steps: Mapping[str, Steps], now: float) -> dict[str, dict[str, Any]]:
    """By site `text`, and `share`, what is done of its steps, from 0 to 1; None where nobody knows.

    A simulation knows the steps. Of a hospital the coordinator knows that it was asked and has not answered, since
    when, and how long its last answer of this phase took.

    Args:
        now: seconds since 1970.
    """
    if progress.code is not None:
        return {}
    told: dict[str, dict[str, Any]] = {}
    for site in progress.sites:
        if progress.waits_for(site):
            known = steps.get(site)
            text = (
                _steps(known, now) if known else "" if progress.run_id == SIMULATION else _waited(progress, site, now)
            )
            told[site] = {"text": text, "share": known.step / known.steps if known and known.steps else None}
        elif progress.sites[site] == "done" and site in progress.took and progress.doing == "trains":
            told[site] = {"text": f"answered after {duration(progress.took[site])}", "share": None}
    return {site: what for site, what in told.items() if what["text"]}


def seconds_left(progress: Progress, steps: Mapping[str, Steps], now: float) -> float | None:
    """Until the round is done, from how long the latest ones took, in the first one from its steps; None: not known."""
    if progress.doing != "trains" or progress.code is not None:
        return None
    if (left := progress.times.left_in_round(now)) is not None:
        return left or None  # it takes longer than those before: for how long, nobody knows
    if not steps or progress.asked_at is None:
        return None
    mean = sum(known.steps for known in steps.values()) / len(steps)
    made = sum(known.steps if progress.sites.get(site) == "done" else known.step for site, known in steps.items())
    # sites that have made none yet are taken to make as many as the others; who has answered has made all of them
    whole = mean * sum(not doing.startswith("left out") for doing in progress.sites.values())
    share = made / whole if whole else 0.0
    return max(0.0, now - progress.asked_at) * (1 - share) / share if 0 < share < 1 else None


def _steps(known: Steps, now: float) -> str:
    left = known.seconds_left(now) if known.step < known.steps else None
    return f"step {known.step} of {known.steps}" + (f", about {duration(left)} left" if left is not None else "")


def _waited(progress: Progress, site: str, now: float) -> str:
    since = progress.waited_since(site)
    if since is None:
        return ""
    moment = time.strftime("%H:%M:%S", time.localtime(since))
    text = f"waited for {duration(max(0.0, now - since))}, since {moment}"
    took = progress.took.get(site)
    return text if took is None else f"{text}; its last answer took {duration(took)}"
