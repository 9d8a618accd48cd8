"""Dice against epsilon: what a privacy budget costs, measured with simulated hospitals that pay from real ledgers.

    python benchmarks/private_dice.py demo                    synthetic hospitals, every variant, one after another
    python benchmarks/private_dice.py qata_cpu --data DIR     QaTa-COV19
    python benchmarks/private_dice.py demo --variants 8 none --seed 2
    python benchmarks/private_dice.py qata_cpu --data DIR --variants 8 none --means norms
    python benchmarks/private_dice.py --page                  table and chart in docs/, from the files alone

Variants: a number is every hospital's epsilon, with the noise planned for it; `none` is the very same study without a
budget; `preset` is the study as it is shipped (its own method, normalisation and schedule), without a budget. All are
trained on the same pictures, at most one training picture of a patient. `0` is the public start of `--means` before any
private picture is seen. Each run is one small JSON file; what is there already is kept, and a run that was cut off goes
on. Dice is measured outside the federation (docs/privacy.md).

Means: `public` starts from a student that was trained on synthetic pictures, which are nobody's; `decoder` and `norms`
do so too, and train only that part of it (privacy.student). `imagenet` has an encoder with public weights for a way
down, and trains the head alone, on all labelled pictures at once; `imagenet_public` has seen synthetic pictures too.
`hospital` (qata_cxr, polypgen) starts from a student that was trained on the pictures of a hospital that has published
them, and trains its head alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.private_studies import EPSILONS, MEANS, METHODS, START, STUDIES, VARIANTS, Variant, places_of
from dusss_core.errors import UserError
from dusss_core.files import write_json, write_text
from feddusss import cli

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "privacy.md"
CHARTS = HERE.parent / "docs" / "images"
BEGIN, END = "<!-- dice: written by benchmarks/private_dice.py -->", "<!-- dice: end -->"
Result = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Measure variants, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", help=", ".join(STUDIES))
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets (qata_cpu)")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, metavar="V", help=", ".join((*VARIANTS, START)))
    parser.add_argument("--method", default=METHODS[0], help=f"{', '.join(METHODS)} ({METHODS[0]})")
    parser.add_argument("--means", default="", choices=tuple(MEANS), help=", ".join(filter(None, MEANS)))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/private_dice"), help="folder for runs")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "private", help="folder for JSON files")
    parser.add_argument("--page", action="store_true", help="write docs/privacy.md's table, and the chart beside it")
    cli.add_common_arguments(parser)
    return cli.run(_command, parser, argv)


def _command(arguments: argparse.Namespace) -> int:
    if arguments.page:
        write_page(read_results(arguments.results), PAGE, CHARTS)
        return cli.OK
    if arguments.study is None:
        raise UserError("no study is named", f"one of: {', '.join(STUDIES)}; or --page")
    names = list(dict.fromkeys(arguments.variants))
    variants = [Variant(arguments.study, arguments.method, name, arguments.seed, arguments.means) for name in names]
    for variant in variants:
        target = arguments.results / f"{variant.file}.json"
        if target.is_file():
            print(f"measured already: {target}")
            continue
        places = places_of(variant, arguments.data, arguments.work)
        result = measure(variant, arguments.work / variant.file, places, arguments.overrides)
        arguments.results.mkdir(parents=True, exist_ok=True)
        write_json(target, result)
        print(f"written: {target}", flush=True)
    return cli.OK


def measure(variant: Variant, folder: Path, places: Iterable[str] = (), overrides: Iterable[str] = ()) -> Result:
    """Simulate one variant in `folder`, or go on with it.

    Args:
        places: settings that name folders of this machine; they are not told.

    Returns:
        What its JSON file holds.
    """
    from benchmarks.grid.trial import provenance
    from server.simulation.simulate import simulate
    from server.study.config import load_study

    study = load_study(variant.preset, [*variant.overrides(), *places, *overrides])
    summary = simulate(study, folder, resume=True)
    told = summary.get("outside", summary)
    trained = load_study(folder / "config.yaml")
    return {
        "study": variant.study,
        "method": trained.method.preset,
        "variant": variant.name,
        "means": variant.means,
        "seed": variant.seed,
        "epsilon": float(variant.name) if variant.name in EPSILONS else None,
        "dice": _rounded({key: told["global"][f"dice_{key}"] for key in ("mean", "weighted", "worst")}),
        "sites": {name: _rounded(site) for name, site in told["sites"].items()},
        "external_test": {name: _rounded(site) for name, site in summary.get("external_test", {}).items()},
        "privacy": trained.privacy.model_dump() if variant.name in EPSILONS else None,
        "rounds": summary["rounds"],
        "seconds": round(summary["seconds"]["total"], 1),
        "overrides": list(overrides),
        "config": trained.model_dump(mode="json", exclude={"data": True, "deployment": True, "student": {"weights"}}),
        **provenance(),
    }


def read_results(folder: Path) -> list[Result]:
    """All files of `measure` in `folder`."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]


def write_page(results: Sequence[Result], page: Path, charts: Path) -> None:
    """Rewrite what lies between the two markers of `page`, and one SVG for each study.

    Raises:
        UserError: the page lacks a marker, or there are no results.
    """
    if not results:
        raise UserError("there are no results", "measure some first: python benchmarks/private_dice.py demo")
    from benchmarks.pages import with_body

    parts, drawn = [], {}
    for study in sorted({result["study"] for result in results}):
        of_study = [result for result in results if result["study"] == study]
        name = f"dice_epsilon_{study}.svg"
        drawn[name] = chart(study, of_study)
        parts += [f"**`{study}`**", "", table(of_study), "", f"![Dice against epsilon](images/{name})", ""]
    text = with_body(page, BEGIN, END, "\n".join(parts))
    charts.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        write_text(charts / name, svg)
    write_text(page, text)


def table(results: Sequence[Result]) -> str:
    """A row for each method and variant: mean over seeds, with the range where there are several; Dice x 100."""
    seeds = {result["seed"] for result in results}
    lines = [
        f"Dice x 100, mean over sites' test pictures, {len(seeds)} seed{'s' * (len(seeds) != 1)}.",
        "",
        "| method | epsilon | noise multiplier | epsilon spent | Dice, mean | Dice, worst site |",
        "|---|---|---|---|---|---|",
    ]
    for method, means, variant in sorted({_row(r) for r in results}, key=_order):
        some = [r for r in results if _row(r) == (method, means, variant)]
        noise = spent = "–"
        if some[0]["privacy"] is not None:
            noise = f"{some[0]['privacy']['noise_multiplier']:.3f}"
            spent = f"{max(site['privacy']['spent'] for r in some for site in r['sites'].values()):.2f}"
        shown = {START: "0: the start alone", "none": "no budget", "preset": "no budget, as shipped"}.get(
            variant, variant
        )
        dice = (_spread([r["dice"][key] for r in some]) for key in ("mean", "worst"))
        lines.append(f"| {_name(method, means)} | {shown} | {noise} | {spent} | {' | '.join(dice)} |")
    return "\n".join(lines)


def chart(study: str, results: Sequence[Result]) -> str:
    """An SVG that stands alone: a line over epsilon for each method, the shipped preset as a level line."""
    from benchmarks.pages import standalone
    from server.report import plots

    places = (*(START for _ in range(any(_row(result)[2] == START for result in results))), *EPSILONS, "none")
    series = []
    curves = [(method, means) for method in METHODS for means in MEANS if _dice(results, method, means)]
    for number, (method, means) in enumerate(curves):
        dice = _dice(results, method, means)
        points = [(x, dice[name]) for x, name in enumerate(places) if name in dice]
        if points:
            series.append(plots.Series(MEANS[means].in_chart or means or method, points, colour=number))
    for method in METHODS:
        if (level := _dice(results, method).get("preset")) is not None:
            points = [(x, level) for x in range(len(places))]
            series.append(plots.Series("as shipped", points, colour=plots.COLOURS - 1))
    if not series:
        raise UserError(f"{study}: no result has a Dice", "look into its runs' log.txt")
    told = "; ".join(f"{line.name}: " + ", ".join(f"{value:.3f}" for _, value in line.points) for line in series)
    svg = plots.line_chart(
        f"Test Dice against epsilon, {study}: {told}",
        series,
        lambda value: f"{value:.2f}",
        (0.0, None),
        across="epsilon of every hospital",
        show_x=places.__getitem__,
    )
    return standalone(str(svg))


def _row(result: Result) -> tuple[str, str, str]:
    return result["method"], result.get("means", ""), result["variant"]


def _name(method: str, means: str) -> str:
    return ", ".join(filter(None, (method, MEANS[means].told)))


def _dice(results: Iterable[Result], method: str, means: str = "") -> dict[str, float]:
    """By variant, mean over seeds; of those that have one."""
    found: dict[str, list[float]] = {}
    for result in results:
        if _row(result)[:2] == (method, means) and result["dice"]["mean"] is not None:
            found.setdefault(result["variant"], []).append(result["dice"]["mean"])
    return {variant: fmean(values) for variant, values in found.items()}


def _order(row: tuple[str, str, str]) -> tuple[bool, int, int, int]:
    method, means, variant = row
    place = METHODS.index(method) if method in METHODS else len(METHODS)
    return variant == "preset", place, list(MEANS).index(means), (START, *VARIANTS).index(variant)


def _spread(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ({min(known):.1f} to {max(known):.1f})" if len(known) > 1 else ""
    return f"{fmean(known):.1f}{spread}"


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


if __name__ == "__main__":
    sys.exit(main())
