"""Reads the files of a run (docs/run_files.md), also of one that is still going or was cut off.

Names and figures in them come from sites: what is not of the expected kind is treated as missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dusss_core.errors import UserError
from feddusss import configfile
from server.runs.lines import ALL_SITES, mapping


@dataclass(frozen=True)
class Run:
    """The files of a run, as they are."""

    folder: Path
    config: dict[str, Any]
    config_text: str
    rounds: list[dict[str, Any]]
    """The lines of metrics.jsonl, the last one of each (phase, round, site)."""
    summary: dict[str, Any]
    """Empty while the run is not finished."""

    @property
    def sites(self) -> list[str]:
        """Names of the sites that took part, sorted."""
        names = {line["site"] for line in self.rounds} - {ALL_SITES}
        return sorted(names | set(mapping(self.summary.get("sites"))))

    @property
    def phases(self) -> list[str]:
        """Phases that have begun, in order."""
        return list(dict.fromkeys(line["phase"] for line in self.rounds))


def read_run(folder: Path) -> Run:
    """Read the files of a run; metrics.jsonl and summary.json may not be there yet.

    Raises:
        UserError: not a folder of a run, or a file of it is damaged.
    """
    config_path = folder / "config.yaml"
    if not config_path.is_file():
        raise UserError(f"{folder}: not a folder of a run, it has no config.yaml", "name the folder under runs/")
    return Run(
        folder=folder,
        config=configfile.read_yaml(config_path),
        config_text=config_path.read_text(encoding="utf-8"),
        rounds=_read_rounds(folder / "metrics.jsonl"),
        summary=_read_summary(folder / "summary.json"),
    )


def _read_rounds(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    # What follows the last newline is a line that is being written, or one that a crash cut off.
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for row, text in enumerate(lines[:-1], start=1):
        if text.strip():
            line = _parse_line(text, f"{path}: line {row}")
            found[line["phase"], line["round"], line["site"]] = line
    order = list(dict.fromkeys(phase for phase, _, _ in found))
    return sorted(found.values(), key=lambda line: (order.index(line["phase"]), line["round"], line["site"]))


def _parse_line(text: str, place: str) -> dict[str, Any]:
    remedy = "delete that line, then make the report again"
    try:
        line = json.loads(text)
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({error})", remedy) from None
    wanted = {"phase": str, "round": int, "site": str}
    if not isinstance(line, dict) or not all(isinstance(line.get(key), kind) for key, kind in wanted.items()):
        raise UserError(f"{place}: lacks 'phase', 'round' or 'site'", remedy)
    return line


_SUMMARY_REMEDY = "delete it, then write it again with: python -m server evaluate RUN"


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})", _SUMMARY_REMEDY) from None
    if not isinstance(summary, dict):
        raise UserError(f"{path}: not a JSON object", _SUMMARY_REMEDY)
    return summary
