"""Dice against epsilon: what a privacy budget costs, measured with simulated hospitals that pay from real ledgers.

    python benchmarks/private_dice.py demo                    synthetic hospitals, every variant, one after another
    python benchmarks/private_dice.py qata_cpu --data DIR     QaTa-COV19
    python benchmarks/private_dice.py demo --variants 8 none --seed 2
    python benchmarks/private_dice.py qata_cpu --data DIR --variants 8 none --means norms
    python benchmarks/private_dice.py --page                  table and chart in docs/, from the files alone

Variants: a number is every hospital's epsilon, with the noise planned for it; `none` is the very same study without a
budget; `preset` is the study as it is shipped (its own method, normalisation and schedule), without a budget. All are
trained on the same pictures, at most one training picture of a patient. Each run is one small JSON file; what is there
already is kept, and a run that was cut off goes on. Dice is measured outside the federation (docs/privacy.md).

Means: `public` starts from a student that was trained on synthetic pictures, which are nobody's; `decoder` and `norms`
do so too, and train only that part of it (privacy.student). `imagenet` has an encoder with public weights for a way
down, and trains the head alone, on all labelled pictures at once; `imagenet_public` has seen synthetic pictures too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from dusss_core.errors import UserError
from dusss_core.files import write_json, write_text
from feddusss import cli

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "privacy.md"
CHARTS = HERE.parent / "docs" / "images"
BEGIN, END = "<!-- dice: written by benchmarks/private_dice.py -->", "<!-- dice: end -->"
EPSILONS = ("1", "2", "4", "8")
VARIANTS = (*EPSILONS, "none", "preset")
METHODS = ("mean_teacher", "supervised", "dusss")

Result = dict[str, Any]


@dataclass(frozen=True)
class Means:
    """What is done so that less noise does less harm."""

    told: str = ""
    """In the table."""
    public: bool = False
    """Start from a student that was trained on synthetic pictures."""
    network: tuple[str, ...] = ()
    """Changes of the study, with a budget and without."""
    private: tuple[str, ...] = ()
    """Changes of the study with a budget."""
    in_chart: str = ""
    """Its line's name, where that of the means is too long for it."""


_ENCODER = ("student.encoder=tf_efficientnet_lite0", "student.weights=imagenet")
# the same noise per step hurts the sum of all records least, and few steps of all cost what many of a few do
_HEAD = (
    "privacy.student=head",
    "privacy.sample_rate=1",
    "privacy.steps_per_round=10",
    "privacy.clip=1",
    "segment.rounds=6",
    "segment.optimizer.lr=0.02",
)
_FINE_TUNED = ("segment.rounds=8", "segment.optimizer.lr=1.0e-3")
MEANS = {
    "": Means(),
    "public": Means("public start", public=True),
    "decoder": Means("public start, decoder trained", public=True, private=("privacy.student=decoder",)),
    "norms": Means("public start, norms trained", public=True, private=("privacy.student=norms",)),
    "imagenet": Means("ImageNet encoder, head trained", network=(*_ENCODER, *_FINE_TUNED), private=_HEAD),
    "imagenet_public": Means(
        "ImageNet encoder, public start, head trained", True, (*_ENCODER, *_FINE_TUNED), _HEAD, "ImageNet+"
    ),
}

_HOSPITALS = [
    {**hospital, "val": 40, "test": 120, "train": 3000, "label_fraction": 0.1}
    for hospital in (
        {"name": "north", "wording": "terse", "scanner": {"noise": 0.02, "blur": 0.35}},
        {
            "name": "harbour",
            "wording": "zonal",
            "scanner": {"gain": 0.85, "gamma": 0.8, "noise": 0.03, "blur": 0.25, "vignette": 0.25},
        },
        {"name": "valley", "wording": "report", "scanner": {"gain": 1.1, "gamma": 1.25, "level": 0.04, "blur": 0.5}},
    )
]
STUDIES: dict[str, dict[str, Sequence[str]]] = {
    # about 1500 patients at each hospital: with the preset's 160 pictures, of 80 patients, noise outweighs all; and
    # findings that are plain to see: the preset's look takes hundreds of steps to learn even without noise
    "demo": {
        "pictures": (
            f"simulation.data.synth.hospitals={json.dumps(_HOSPITALS)}",
            "simulation.data.synth.contrast=3",
        ),
        "training": (
            "segment.rounds=25",
            "segment.optimizer.lr=2.0e-3",
            "privacy.sample_rate=0.04",
            "privacy.steps_per_round=20",
        ),
    },
    # all training pictures: covid has 2400 (no patient is named), cxr_1 and cxr_2 about 330 patients each
    "qata_cpu": {
        "pictures": ("simulation.partition.subset.train=null", "simulation.workers=2", "simulation.threads=1"),
        # half the preset's width: a quarter of the parameters, so half the noise in their sum
        "training": (
            "student.width=8",
            "segment.rounds=20",
            "segment.optimizer.lr=2.0e-3",
            "privacy.sample_rate=0.05",
            "privacy.steps_per_round=20",
        ),
    },
}
"""`pictures`: for every variant. `training`: for all but `preset`, so that a budget alone makes the difference."""
_PUBLIC_DISEASE = {"two_findings": 0.6, "radius_min": 5, "radius_max": 12}
_PUBLIC_HOSPITALS = [
    {
        "name": name,
        "train": 900,
        "val": 60,
        "test": 60,
        "label_fraction": 1,
        "disease": _PUBLIC_DISEASE,
        "scanner": scanner,
    }
    for name, scanner in (
        ("sharp", {"noise": 0.02, "blur": 0.8}),
        ("soft", {"gain": 0.8, "gamma": 0.8, "noise": 0.03, "blur": 1.5, "vignette": 0.2}),
    )
]
_PUBLIC_STUDY = (
    "method.preset=supervised",
    "segment.rounds=12",
    "segment.batch=16",
    "segment.optimizer.lr=3.0e-3",
    "simulation.data.synth.distractors_min=0",
    "simulation.data.synth.distractors_max=0",
    f"simulation.data.synth.hospitals={json.dumps(_PUBLIC_HOSPITALS)}",
)
_FOR_ALL = ("simulation.privacy.records_per_patient=1",)
_AT_EQUAL_TERMS = (
    "local_norm=false",
    "student.norm=group",
    "privacy.clip=0.3",
    # a private site sends no validation figure to choose a round by
    "federation.select=last",
    "segment.patience=1000",
)


@dataclass(frozen=True)
class Variant:
    """One run."""

    study: str
    method: str
    name: str
    seed: int
    means: str = ""

    def __post_init__(self):
        chosen = ((self.study, STUDIES), (self.method, METHODS), (self.name, VARIANTS), (self.means, MEANS))
        for value, known in chosen:
            if value not in known:
                raise UserError(f"{value}: not known", f"one of: {', '.join(known)}")

    @property
    def file(self) -> str:
        method = "" if self.name == "preset" else "-".join(("", self.method, *([self.means] if self.means else [])))
        return f"{self.study}{method}-{self.name}-seed{self.seed}"

    def overrides(self) -> list[str]:
        """What the run's study changes in its file."""
        changes = STUDIES[self.study]
        told = [f"seed={self.seed}", *_FOR_ALL, *changes["pictures"]]
        if self.name != "preset":
            told += [f"method.preset={self.method}", *_AT_EQUAL_TERMS, *changes["training"]]
        means = MEANS[self.means]
        told += means.network
        if self.name in EPSILONS:
            told += [f"simulation.privacy.epsilon={self.name}", *means.private]
        return told


def main(argv: list[str] | None = None) -> int:
    """Measure variants, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", help=", ".join(STUDIES))
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets (qata_cpu)")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, metavar="V", help=", ".join(VARIANTS))
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
        root = [] if arguments.data is None else [f"data.root={arguments.data.absolute()}"]
        start = [f"student.weights={public_student(variant, arguments.work)}"] if MEANS[variant.means].public else []
        result = measure(variant, arguments.work / variant.file, [*root, *start], arguments.overrides)
        arguments.results.mkdir(parents=True, exist_ok=True)
        write_json(target, result)
        print(f"written: {target}", flush=True)
    return cli.OK


def public_student(variant: Variant, work: Path) -> Path:
    """A student of the study's shape, trained on synthetic pictures without look-alikes; made once."""
    from server.simulation.simulate import simulate
    from server.study.config import load_study

    study = load_study(variant.study, variant.overrides())
    student = study.student
    shape = [f"student.{key}={value}" for key, value in student.model_dump().items() if value is not None]
    size = [f"{key}={study.image.size}" for key in ("image.size", "simulation.data.synth.size")]
    name = "-".join(["public", *([student.encoder] if student.encoder else []), str(student.width), student.norm])
    folder = (work / f"{name}-{study.image.size}").absolute()
    pace = MEANS[variant.means].network and ["segment.optimizer.lr=1.0e-3"]
    simulate(load_study("demo", ["local_norm=false", *shape, *size, *_PUBLIC_STUDY, *pace]), folder, resume=True)
    return folder / "checkpoints" / "student.safetensors"


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

    study = load_study(variant.study, [*variant.overrides(), *places, *overrides])
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
        shown = {"none": "no budget", "preset": "no budget, as shipped"}.get(variant, variant)
        dice = (_spread([r["dice"][key] for r in some]) for key in ("mean", "worst"))
        lines.append(f"| {_name(method, means)} | {shown} | {noise} | {spent} | {' | '.join(dice)} |")
    return "\n".join(lines)


def chart(study: str, results: Sequence[Result]) -> str:
    """An SVG that stands alone: a line over epsilon for each method, the shipped preset as a level line."""
    from benchmarks.pages import standalone
    from server.report import plots

    places = (*EPSILONS, "none")
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
    return variant == "preset", place, list(MEANS).index(means), VARIANTS.index(variant)


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
