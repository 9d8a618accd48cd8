"""Measures one cell of the accuracy grid, and writes it as one small JSON file.

    python benchmarks/accuracy.py --data DIR --dataset qata --labels 0.05 --method dusss --setting federated --seed 1

It stops cleanly where the next round would pass --time-limit, and goes on at the next call with the same arguments.
`python benchmarks/tables.py` makes docs/results.md's tables of accuracy from these files alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.grid.cell import DATASETS, PROFILES, Cell
from feddusss import cli

if TYPE_CHECKING:
    import numpy as np

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> int:
    """Train and test one cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--dataset", required=True, help=", ".join(DATASETS))
    parser.add_argument("--labels", type=float, default=0.5, help="share of the training masks (0.5)")
    parser.add_argument("--method", required=True, help="dusss, paper, mean_teacher, supervised, clip, table2_110, ...")
    parser.add_argument("--setting", default="centralized", help="centralized, local, federated, iid, skewed, ...")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--profile", choices=PROFILES, default="cpu", help="cpu: sized for two cores; gpu: the paper's")
    parser.add_argument("--time-limit", type=float, metavar="MIN", help="stop after so many minutes; call again")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder for runs (runs/accuracy)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    cli.add_common_arguments(parser)
    return cli.run(_measure, parser, argv)


def _measure(arguments: argparse.Namespace) -> int:
    from benchmarks.grid.methods import find_method
    from benchmarks.grid.trial import Clock, OutOfTime
    from dusss_core.files import write_json

    cell = Cell(
        arguments.dataset, arguments.labels, arguments.method, arguments.setting, arguments.profile, arguments.seed
    )
    find_method(cell.method)
    target = arguments.results / f"{cell.name}.json"
    if target.is_file():
        print(f"measured already: {target}")
        return cli.OK
    clock = Clock(None if arguments.time_limit is None else 60 * arguments.time_limit)
    try:
        result = measure(cell, arguments.data, arguments.work.absolute(), clock, tuple(arguments.overrides))
    except OutOfTime:
        print("the time limit is reached; the same command goes on from here")
        return cli.OK
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_json(target, result)
    print(f"written: {target}")
    return cli.OK


def measure(cell: Cell, data: Path, work: Path, clock: Any, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Train the cell's federations and read their test pictures.

    Returns:
        What the cell's JSON file holds.
    """
    from benchmarks.grid.hospitals import groups_of_sites
    from benchmarks.grid.methods import find_method
    from benchmarks.grid.trial import Trial, hidden_text_dice, make_study, provenance, test_figures

    started = time.perf_counter()
    plain = make_study(cell, data, overrides)
    share = f"{100 * cell.labels:g}".replace(".", "_")
    hospitals = work / f"hospitals-{cell.dataset}-{cell.profile}-{share}pct-{cell.setting}-seed{cell.seed}"
    groups = groups_of_sites(cell, plain, hospitals)
    pictures: dict[str, list[dict[str, np.ndarray]]] = {}
    summaries, hidden = [], []
    for name, sites in groups.items():
        trial = Trial(cell, work / cell.name / name, sites, data, clock, overrides)
        trained = find_method(cell.method)(trial)
        clock.check()
        for site, figures in test_figures(trained, sites, plain).items():
            pictures.setdefault(site, []).append(figures)
        summaries.append(_run_figures(trial.folder))
        hidden.append(hidden_text_dice(trained, sites, plain))
    return {
        **{key: getattr(cell, key) for key in ("dataset", "labels", "method", "setting", "profile", "seed")},
        **_figures(pictures, summaries, hidden),
        "config": plain.model_dump(mode="json", exclude={"data", "deployment"}),
        **provenance(),
        "seconds": round(sum(run["seconds"] for run in summaries) or time.perf_counter() - started, 1),
    }


def _run_figures(folder: Path) -> dict[str, Any]:
    """Validation figures of the final model, and the time that its rounds took."""
    import json

    from server.runfiles import read_run

    run = read_run(folder)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    final = summary["rounds"]["segment"]["final"]
    lines = [line for line in run.rounds if line["phase"] == "segment" and line["site"] == "*"]
    # the figures of a round are those of the model before it
    val = next((line.get("val", {}) for line in lines if line["round"] == final + 1), {})
    return {"val": val, "seconds": summary["seconds"]["total"]}


def _figures(
    pictures: dict[str, list[dict[str, np.ndarray]]], runs: list[dict[str, Any]], hidden: list[float | None]
) -> dict[str, Any]:
    import numpy as np

    from sites.partition import OFFICIAL_TEST

    def means(figures: list[dict[str, np.ndarray]], names: tuple[str, ...]) -> dict[str, float | None]:
        values = {name: np.concatenate([some[name] for some in figures]) for name in names}
        return {name: _rounded(np.nanmean(v) if np.isfinite(v).any() else None) for name, v in values.items()}

    official = pictures.get(OFFICIAL_TEST) or [some for site in pictures.values() for some in site]
    text = means(official, ("text_dice", "merged_dice"))
    known = [value for value in hidden if value is not None]
    return {
        "val": {
            name: _rounded(_mean([run["val"][name] for run in runs if name in run["val"]])) for name in ("dice", "iou")
        },
        "test": {**means(official, ("dice", "iou", "hd95")), "n": sum(len(some["dice"]) for some in official)},
        "text_mask": {"dice": _rounded(_mean(known)), "test_dice": text["text_dice"]},
        "with_sentence": {"dice": text["merged_dice"]},
        "sites": {site: means(figures, ("dice", "iou", "hd95")) for site, figures in pictures.items()},
        # per picture, in thousandths, averaged over federations, for paired tests
        "test_dice_per_picture": [int(v) for v in np.rint(1000 * _per_picture(official))],
    }


def _per_picture(figures: list[dict[str, np.ndarray]]) -> np.ndarray:
    import numpy as np

    dice = [some["dice"] for some in figures]
    same = len({len(values) for values in dice}) == 1 and len(dice) > 1
    return np.mean(dice, axis=0) if same else np.concatenate(dice)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


if __name__ == "__main__":
    sys.exit(main())
