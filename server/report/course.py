"""The course of a run on the page: curves of each phase, and who was absent in which round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from server.report import plots
from server.report.figures import title, trained
from server.report.quantities import show_figure, show_tick
from server.runs.lines import ALL_SITES, mapping, number, scalars
from server.runs.runfiles import Run

SCALARS = {
    "train.loss": "Training loss",
    "val.loss": "Validation loss",
    "val.dice": "Validation Dice",
    "val.text_dice": "Validation Dice with the sentence",
    "val.personal_dice": "Validation Dice, sites' own students",
    "pseudo.text_dice": "Pseudo-labels: text-guided mask",
    "pseudo.teacher_dice": "Pseudo-labels: teacher",
    "pseudo.merged_dice": "Pseudo-labels: merged target",
}
"""The figures that are drawn large, in this order; all others go into a folded section."""

_MANY_SITES = plots.COLOURS
"""With more sites than this, only the aggregate is named in a chart."""

_NOT_ASKED = "not asked"


def progress(run: Run) -> str:
    """How far an unfinished run is."""
    if not run.rounds:
        return "no round is finished yet"
    done, training = [], trained(run)
    for phase in run.phases:
        last = max((round for of, round in training if of == phase), default=0)
        planned = number(mapping(run.config.get(phase)).get("rounds"))
        done.append(f"{phase} round {last}" + (f" of {planned}" if planned else ""))
    return ", ".join(done)


def phase_curves(run: Run, phase: str) -> dict[str, Any]:
    """All figures of a phase as charts over its rounds."""
    lines = [line for line in run.rounds if line["phase"] == phase]
    found = {name for line in lines for name in scalars(line)}
    found = {name for name in found if "." in name and not name.startswith("state.")}
    main = [name for name in SCALARS if name in found]
    ended = mapping(mapping(run.summary.get("rounds")).get(phase))
    return {
        "title": title(phase),
        "final": number(ended.get("final")),
        "ended": str(ended.get("ended") or ""),
        "main": [_curve(run, lines, name) for name in main],
        "other": [_curve(run, lines, name) for name in sorted(found - set(main))],
    }


def takers(run: Run) -> set[str]:
    """Sites that trained in a round or more; where the rounds are not known, those that were tested."""
    training = trained(run)
    lines = [line for line in run.rounds if (line["phase"], line["round"]) in training]
    took_part = {line["site"] for line in lines if line.get("accepted") is not False} - {ALL_SITES}
    return took_part or set(mapping(run.summary.get("sites")))


def absences(run: Run) -> list[dict[str, Any]]:
    """Who took no part in which rounds of a phase, and why: a row for each site, phase and reason."""
    rows, training = [], trained(run)
    for phase in run.phases:
        lines = [line for line in run.rounds if line["phase"] == phase and line["site"] != ALL_SITES]
        rounds = sorted(round for of, round in training if of == phase)
        answers = {(line["site"], line["round"]): line for line in lines}
        for site in _trainers(run):
            missed = _missed(site, rounds, answers)
            rows += [
                {
                    "site": site,
                    "phase": title(phase),
                    "rounds": _ranges(those),
                    "share": f"{len(those)} of {len(rounds)}",
                    "reason": reason,
                    "asked": not reason.startswith(_NOT_ASKED),
                }
                for reason, those in missed.items()
            ]
    return rows


def _trainers(run: Run) -> list[str]:
    """Sites that took part in training, or were asked to."""
    training = trained(run)
    return sorted({line["site"] for line in run.rounds if (line["phase"], line["round"]) in training} - {ALL_SITES})


def _missed(
    site: str, rounds: Iterable[int], answers: Mapping[tuple[str, int], Mapping[str, Any]]
) -> dict[str, list[int]]:
    """Rounds that a site took no part in, by reason."""
    missed: dict[str, list[int]] = {}
    before = ""
    for round in rounds:
        line = answers.get((site, round))
        if line is None:
            missed.setdefault(f"{_NOT_ASKED} again: {before}" if before else _NOT_ASKED, []).append(round)
        elif line.get("accepted") is False:
            before = str(line.get("reason") or "no reason given")
            missed.setdefault(before, []).append(round)
        else:
            before = ""
    return missed


def _ranges(rounds: list[int]) -> str:
    """3, 5–7."""
    parts: list[list[int]] = []
    for round in rounds:
        if parts and round == parts[-1][-1] + 1:
            parts[-1].append(round)
        else:
            parts.append([round])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)


def _curve(run: Run, lines: list[dict[str, Any]], name: str) -> dict[str, Any]:
    # A model is validated when it reaches the sites, that is in the round after the one that made it.
    shift = 1 if name.startswith("val.") else 0
    places: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        if (value := scalars(line).get(name)) is not None:
            places.setdefault(line["site"], []).append((line["round"] - shift, value))
    series = []
    for index, site in enumerate(run.sites):
        if site in places:
            style = "site" if len(run.sites) <= _MANY_SITES else "muted"
            series.append(plots.Series(site, places[site], style, index))
    if ALL_SITES in places:
        series.append(plots.Series("all sites", places[ALL_SITES], "all"))
    shown = SCALARS.get(name, name)
    described = "; ".join(
        f"{line.name} from {show_figure(line.points[0][1])} to {show_figure(line.points[-1][1])}" for line in series
    )
    is_score = name.rpartition(".")[2].endswith(("dice", "iou"))
    chart = plots.line_chart(
        f"{shown} by round: {described}", series, show_tick, (0.0, None) if is_score else (None, None)
    )
    return {"title": shown, "svg": chart}
