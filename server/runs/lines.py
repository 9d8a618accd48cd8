"""The lines of metrics.jsonl: read, and their figures by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dusss_core.phases import Phase

ALL_SITES = "*"
"""The site of the lines of metrics.jsonl that hold a round's aggregate."""
_OF_THE_COORDINATOR = {"phase", "round", "site", "bytes_up", "bytes_down"}
"""What the coordinator itself adds to a site's line."""


def metrics_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The whole lines of a metrics.jsonl, as text and as values."""
    # What follows the last newline was cut off by a crash.
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and line.get("phase") in list(Phase) and isinstance(line.get("round"), int):
            yield text, line


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one line of metrics.jsonl that a site sent, under dotted names."""
    flat = {name: raw for name, raw in line.items() if name not in _OF_THE_COORDINATOR}
    for group, values in line.items():
        flat |= {f"{group}.{name}": raw for name, raw in mapping(values).items()}
    return {name: value for name, raw in flat.items() if (value := number(raw)) is not None}


def with_bytes(line: Mapping[str, Any]) -> dict[str, float]:
    """All figures of a line: `scalars`, and the bytes that the coordinator counted."""
    counted = {name: number(line.get(name)) for name in ("bytes_up", "bytes_down")}
    return {**scalars(line), **{name: value for name, value in counted.items() if value is not None}}


def final_figures(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The test figures in summary.json, by site and `*`: {"alder": {"dice": 0.7, ...}, "*": {"dice_mean": ...}}."""
    told = {**mapping(summary.get("sites")), **mapping(summary.get("external_test")), ALL_SITES: summary.get("global")}
    return {
        site: {name: value for name, raw in mapping(figures).items() if (value := number(raw)) is not None}
        for site, figures in told.items()
    }


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}
