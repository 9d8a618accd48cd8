"""Whether text-guided masks earn their place at each site, in words and for summary.json.

The sites decide, each on its own validation pictures (`dusss_core.training.judging`); what is told here follows from
the means that they send.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from dusss_core.phases import Phase
from server.study.config import StudyConfig

AGAINST = {"teacher": "the teacher", "student": "the global student", "plain": "a student of its labels alone"}
"""What text-guided masks are compared with, as sites name it and in words."""


def judged(train: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a site's figures of a round, "train" in metrics.jsonl, say of its text-guided masks.

    Returns:
        {"share", "text", "against", "reference"}: what they weigh, their validation Dice, and name and Dice of the best
        of those that they were compared with. None where nothing was judged.
    """
    share, text = _figure(train, "text_share"), _figure(train, "judged_text")
    dice = {name: _figure(train, f"judged_{name}") for name in AGAINST}
    known = {name: value for name, value in dice.items() if value is not None}
    if share is None or text is None or not known:
        return None
    best = max(known, key=known.__getitem__)
    return {"share": share, "text": text, "against": best, "reference": known[best]}


def line(site: str, found: Mapping[str, Any]) -> str:
    """What `judged` found, in one line for a person."""
    against, share = AGAINST[found["against"]], found["share"]
    figures = f"{found['text']:.2f} against {found['reference']:.2f}"
    if share >= 1 and found["text"] < found["reference"]:
        return (
            f"text-guided masks are below {against} at {site}: {figures}; on so few pictures that may be chance, so "
            "they weigh in full there"
        )
    if share >= 1:
        return f"text-guided masks hold against {against} at {site}: {figures}; they weigh in full there"
    weigh = f"they weigh {share:.1f} there" if share >= 0.05 else "they weigh nothing there"
    return f"text-guided masks lose against {against} at {site}: {figures}; {weigh}"


class Worth:
    """Tells of sites where text-guided masks lose: once when they do, and again when they weigh nothing or all."""

    def __init__(self, study: StudyConfig):
        self._wanted = study.method.text_mask and study.method.judge_text
        self._told: dict[str, str] = {}

    def news(self, phase: Phase, sites: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Lines for a person after a round.

        Args:
            sites: figures of the accepted answers, under dotted names.
        """
        if not self._wanted or phase != Phase.SEGMENT:
            return []
        found = {name: judged(_train(figures)) for name, figures in sites.items()}
        lines = []
        for name, one in sorted(found.items()):
            state = _state(one)
            if state != self._told.get(name, "full"):
                lines.append(not_judged(name) if one is None else line(name, one))
            self._told[name] = state
        return lines


def not_judged(site: str) -> str:
    """Of a site that sent no figures to judge by, in one line."""
    return (
        f"{site}: nothing tells whether text-guided masks help there (no validation pictures with mask and sentence, "
        "no sentences to train on, or differential privacy); where there are any, they weigh in full"
    )


def of_final_round(lines: Iterable[Mapping[str, Any]], round: int) -> dict[str, dict[str, Any]]:
    """What was judged in the round that made the final student, by site, with "told", the line for a person.

    Args:
        lines: those of metrics.jsonl.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in lines:
        if entry["phase"] == Phase.SEGMENT and entry["round"] == round and entry.get("accepted"):
            one = judged(entry.get("train") or {})
            found[entry["site"]] = {} if one is None else one
    return {name: {**one, "told": line(name, one) if one else not_judged(name)} for name, one in sorted(found.items())}


def _state(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "unknown"
    return "full" if found["share"] >= 1 else "nothing" if found["share"] < 0.05 else "less"


def _train(figures: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("train."): value for name, value in figures.items() if name.startswith("train.")}


def _figure(train: Mapping[str, Any], name: str) -> float | None:
    value = train.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
