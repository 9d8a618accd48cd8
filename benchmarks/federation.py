"""What a federation costs beyond training: seconds, processor time, memory and bytes of a round, and where they go.

    python -m benchmarks.federation                     3 to 1,000 sites of a small model, 3 to 30 of 59 MB
    python -m benchmarks.federation --model paper --sites 3,10 --repeats 3
    python -m benchmarks.federation --against FOLDER    in turns with the code of another checkout, and ratios
    python -m benchmarks.federation --set federation.wire=bfloat16

Sites answer by their real way - door, private state, audit log - but do not train: see probes/federation_probe.py.
All lie in one process with one thread; a second run with the sites in worker processes gives the coordinator's own
memory. The first three rounds, in which sites build what they keep and fill their disks, do not count. Processor time
is the firmer figure: this may be a machine that others use. `--json FILE` keeps all that was measured;
docs/performance.md is made of that.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import measured
from feddusss import cli

WIDTH = {"small": 4, "paper": 64}
PLAN = {"small": (3, 30, 300, 1000), "paper": (3, 10, 30)}
QUICK = {"small": (3, 30), "paper": (3, 10)}
WORKERS = 2
"""Of the run that gives the coordinator's memory."""

Cell = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(WIDTH), help="one model only")
    parser.add_argument("--sites", type=_numbers, help="numbers of sites, with commas between")
    parser.add_argument("--rounds", type=int, default=6, help="rounds, of which the first three do not count (6)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each cell; the middle one counts (1)")
    parser.add_argument("--quick", action="store_true", help="fewer sites")
    parser.add_argument(
        "--against", type=Path, help="a checkout to compare with, such as a worktree of an older commit"
    )
    parser.add_argument("--no-memory", action="store_true", help="without the second run, in worker processes")
    parser.add_argument("--json", type=Path, help="keep what was measured in this file")
    cli.add_common_arguments(parser)
    return cli.run(_measure, parser, argv)


def cells(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """Model and number of sites of each cell."""
    plan = QUICK if arguments.quick else PLAN
    models = [arguments.model] if arguments.model else list(plan)
    return [(model, sites) for model in models for sites in arguments.sites or plan[model]]


def beyond_training(figures: dict[str, Any], kind: str) -> float:
    """Seconds of a round ("wall" or "cpu") without what stands in for training."""
    return fmean(figures[f"round_{kind}_s"]) - figures[f"shares_{kind}_s"].get("site: training", 0.0)


def figures_of(run: dict[str, Any]) -> list[float | None]:
    """Of one run: seconds and CPU-seconds of a round, MB down and up, peak MB of all and of the coordinator."""
    return [
        beyond_training(run, "wall"),
        beyond_training(run, "cpu"),
        run["bytes_down"] / 1e6,
        run["bytes_up"] / 1e6,
        run["peak_mb"],
        run.get("coordinator_peak_mb"),
    ]


def probe(checkout: Path, settings: dict[str, Any], folder: Path, manifest: Path) -> dict[str, Any]:
    """Run one federation in a process of its own.

    Args:
        settings: "model" and "sites"; else "rounds" (6), "workers" (1), "shares" (False), "federation" ({}).
        folder: for what is needed meanwhile.
        manifest: from `data`.

    Returns:
        What `federation_probe.py` prints, and what the whole process took: "process_wall_s", "process_cpu_s".
    """
    given = {"rounds": 6, "workers": 1, "shares": False, "federation": {}, **settings}
    with tempfile.TemporaryDirectory(dir=folder) as own:
        file = Path(own) / "settings.json"
        given |= {"width": WIDTH[given["model"]], "data": str(manifest), "folder": own}
        file.write_text(json.dumps(given))
        done = measured.run([sys.executable, str(measured.PROBES / "federation_probe.py"), str(file)], checkout)
    return {**json.loads(done.output.splitlines()[-1]), "process_wall_s": done.wall_s, "process_cpu_s": done.cpu_s}


def data(folder: Path) -> Path:
    """A few pictures, which all sites have; returns their manifest."""
    from sites.synth.config import SynthConfig
    from sites.synth.hospitals import write_hospitals

    one = {"name": "data", "train": 2, "val": 1, "test": 1, "label_fraction": 0.5}
    return write_hospitals(folder, SynthConfig.model_validate({"size": 32, "hospitals": [one]}), 1)[0]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _measure(arguments: argparse.Namespace) -> int:
    checkouts = {"ours": measured.HERE}
    if arguments.against is not None:
        checkouts["against"] = arguments.against.resolve()
    with tempfile.TemporaryDirectory() as name:
        manifest = data(Path(name))
        results = [_cell(checkouts, *cell, arguments, Path(name), manifest) for cell in cells(arguments)]
    document = {
        "what": "federation",
        **measured.stamp(arguments.against),
        "rounds": arguments.rounds,
        "overrides": arguments.overrides,
        "cells": results,
    }
    _print(document)
    if arguments.json:
        measured.write(arguments.json, document)
    return cli.OK


def _cell(
    checkouts: dict[str, Path], model: str, sites: int, arguments: argparse.Namespace, folder: Path, manifest: Path
) -> Cell:
    settings = {"model": model, "sites": sites, "federation": overridden(arguments.overrides)}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for _ in range(arguments.repeats):
        for name, checkout in checkouts.items():
            print(f"{model}, {sites} sites, {name}", file=sys.stderr)
            given = {**settings, "rounds": arguments.rounds, "shares": True}
            runs[name].append(probe(checkout, given, folder, manifest))
    cell: Cell = {"model": model, "sites": sites}
    for name, checkout in checkouts.items():
        cell[name] = sorted(runs[name], key=lambda one: beyond_training(one, "cpu"))[len(runs[name]) // 2]
        if not arguments.no_memory:
            alone = probe(checkout, {**settings, "rounds": 2, "workers": WORKERS}, folder, manifest)
            cell[name]["coordinator_peak_mb"] = alone["peak_mb"]
    return cell


def overridden(overrides: list[str]) -> dict[str, Any]:
    """The `federation` part that --set gives; other keys of a study change nothing here."""
    import yaml

    from dusss_core.errors import UserError

    values = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        part, dot, name = key.partition(".")
        if part != "federation" or not dot or not equals:
            raise UserError(f"--set {override}: only federation.KEY=VALUE can be set here", "leave it out")
        values[name] = yaml.safe_load(value)
    return values


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=150)
    table = Table("model", "sites", "", "s/round", "CPU-s/round", "MB down", "MB up", "peak MB", "coordinator MB")
    for cell in document["cells"]:
        rows = {name: figures_of(cell[name]) for name in ("ours", "against") if name in cell}
        for name, values in rows.items():
            table.add_row(
                cell["model"], str(cell["sites"]), name, *("" if value is None else _told(value) for value in values)
            )
        if "against" in rows:
            pairs = zip(rows["ours"], rows["against"], strict=True)
            table.add_row("", "", "ratio", *(f"{a / b:.2f}" if a is not None and b else "" for a, b in pairs))
    console.print(table)
    for cell in document["cells"]:
        console.print(f"{cell['model']}, {cell['sites']} sites: CPU-s of a round by share, summed over the sites")
        shares = Table("share", *(name for name in ("ours", "against") if name in cell))
        names = {name for one in ("ours", "against") for name in cell.get(one, {}).get("shares_cpu_s", ())}
        for share in sorted(names, key=lambda one: -cell["ours"]["shares_cpu_s"].get(one, 0.0)):
            values = [f"{cell[one]['shares_cpu_s'].get(share, 0.0):.3f}" for one in ("ours", "against") if one in cell]
            shares.add_row(share, *values)
        console.print(shares)


def _told(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
