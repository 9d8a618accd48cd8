"""What a run cost, on the page: bytes, time, privacy, and what left the hospitals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dusss_core.errors import UserError
from dusss_core.phases import Phase
from feddusss import configfile
from server.report import plots
from server.report.figures import mean, results, title, trained
from server.report.quantities import show_bytes
from server.runs.lines import ALL_SITES, mapping, number, scalars
from server.runs.runfiles import Run
from server.runs.runfolder import CHARGES
from server.study.config import StudyConfig

_DELTA = 1e-5
"""At which the privacy of a study is told: a hospital's own delta is not known here."""


def traffic(run: Run) -> dict[str, Any]:
    """Bytes by round and by phase, summed over sites."""
    totals: dict[tuple[str, int], list[float]] = {}
    for line in run.rounds:
        if line["site"] != ALL_SITES:
            up, down = number(line.get("bytes_up")) or 0, number(line.get("bytes_down")) or 0
            total = totals.setdefault((line["phase"], line["round"]), [0, 0])
            total[0], total[1] = total[0] + up, total[1] + down
    rounds = [(phase, round, up, down) for (phase, round), (up, down) in totals.items()]
    training = trained(run)
    rows = []
    for phase in run.phases:
        whole = [(up, down) for name, _, up, down in rounds if name == phase]
        of_training = [(up, down) for name, round, up, down in rounds if name == phase and (name, round) in training]
        rows.append(
            {
                "phase": title(phase),
                "rounds": len(of_training),
                "up": sum(up for up, _ in whole),
                "down": sum(down for _, down in whole),
                "up_per_round": mean(up for up, _ in of_training),
                "down_per_round": mean(down for _, down in of_training),
            }
        )
    if not any(up or down for *_, up, down in rounds):
        return {"svg": None, "rows": []}
    described = "; ".join(
        f"{row['phase']}: {show_bytes(row['up_per_round'])} up, {show_bytes(row['down_per_round'])} down"
        for row in rows
    )
    return {"svg": plots.traffic_chart(f"Bytes per round. {described}", rounds, show_bytes), "rows": rows}


def time(run: Run) -> list[dict[str, Any]]:
    """A row for each part of the run: the time that passed, and the sites' own work, summed, which may be more."""
    told, training = mapping(run.summary.get("seconds")), trained(run)
    rows = []
    for phase in run.phases:
        lines = [line for line in run.rounds if line["phase"] == phase and (phase, line["round"]) in training]
        work = sum(number(line.get("seconds")) or 0 for line in lines if line["site"] != ALL_SITES)
        whole = sum(number(line.get("seconds")) or 0 for line in lines if line["site"] == ALL_SITES)
        passed = number(told.get(phase))
        rows.append({"part": title(phase), "passed": whole or None if passed is None else passed, "work": work or None})
    for name, shown in (("evaluate", "Evaluation"), ("total", "Total")):
        if (value := number(told.get(name))) is not None:
            work = sum(row["work"] or 0 for row in rows) or None
            rows.append({"part": shown, "passed": value, "work": work if name == "total" else None})
    return rows


def privacy(run: Run) -> dict[str, Any]:
    """What differential privacy the study spent at the sites that train with it, as far as their answers tell."""
    charges: dict[str, float] = {}
    paid: dict[str, dict[str, int]] = {}
    for line in run.rounds:
        if line["site"] != ALL_SITES and (value := number(line.get(CHARGES))) is not None:
            charges[line["site"]] = max(charges.get(line["site"], 0), value)
            of_phase = paid.setdefault(line["site"], {})
            of_phase[line["phase"]] = of_phase.get(line["phase"], 0) + 1
    declared = {name: number(site.get("n_records")) for name, site in results(run).items()}
    rows = [
        {
            "name": name,
            "records": declared.get(name),
            "charges": charges.get(name),
            "rounds": sum(paid.get(name, {}).values()),
            "epsilon": _epsilon(run, paid.get(name, {})),
        }
        for name in sorted({*charges, *(name for name, records in declared.items() if records is not None)})
    ]
    return {"rows": rows, "secure": mapping(run.config.get("federation")).get("secure_aggregation") is True}


def shared(run: Run) -> dict[str, Any]:
    """What left the hospitals: tensors by phase, and the names of the figures that came with them."""
    tensors = []
    for phase, raw in mapping(run.summary.get("shared")).items():
        entry = mapping(raw)
        names = entry.get("names")
        tensors.append(
            {
                "phase": title(phase),
                "tensors": number(entry.get("tensors")),
                "bytes": number(entry.get("bytes")),
                "names": [str(name) for name in names] if isinstance(names, list) else [],
            }
        )
    figures = sorted({name for line in run.rounds if line["site"] != ALL_SITES for name in scalars(line)})
    return {"tensors": tensors, "figures": figures}


def _epsilon(run: Run, rounds: Mapping[str, int]) -> float | None:
    """What so many rounds of each phase cost a patient with one picture, at `_DELTA`; None: the settings do not say."""
    from dataclasses import replace

    from dusss_core.privacy.accounting import epsilon
    from dusss_core.privacy.mechanism import charge_of

    if not rounds:
        return None
    try:
        config = configfile.parse(StudyConfig, dict(run.config), "config.yaml").training()
        each = {phase: charge_of(config, Phase(phase)) for phase in rounds if phase in list(Phase)}
        charges = [replace(charge, steps=charge.steps * rounds[phase]) for phase, charge in each.items()]
        return number(epsilon(charges, _DELTA))
    except (UserError, ValueError):  # of another release
        return None
