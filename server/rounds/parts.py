"""Whose part a round's model held, in words: where training breaks afterwards, one of them may be why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.rounds.shares import capped
from server.study.federation import MEANS, FederationConfig


def told_parts(federation: FederationConfig, round: int, lines: Mapping[str, Mapping[str, Any]]) -> str:
    """Who was in the model of a round, with shares of the mean and sizes of updates; empty where nobody is known.

    Args:
        lines: the round's lines in metrics.jsonl by site, of the answers that were accepted.
    """
    if not lines:
        return ""
    names = sorted(lines)
    norms = {name: lines[name].get("update", {}).get("norm") for name in names}
    sized = {name: "" if norm is None else f"update of size {norm:.3g}" for name, norm in norms.items()}
    if federation.strategy not in MEANS:
        told = ", ".join(f"{name} ({sized[name]})" if sized[name] else name for name in names)
        return f"the model that they were given is of round {round}, by {federation.strategy} of {told}"
    shares = capped([_weight(federation, name, lines[name]) for name in names], federation.max_share)
    total = sum(shares) or 1.0
    parts = [
        f"{name} ({', '.join(filter(None, (f'{100 * share / total:.3g} %', sized[name])))})"
        for name, share in zip(names, shares, strict=True)
    ]
    return f"the model that they were given is the mean of round {round}: {', '.join(parts)}"


def _weight(federation: FederationConfig, name: str, line: Mapping[str, Any]) -> float:
    if federation.weighting == "uniform":
        return 1.0
    examples = float(line.get("num-examples", 0.0))
    return examples if federation.sizes is None else min(examples, federation.sizes.get(name, 0))
