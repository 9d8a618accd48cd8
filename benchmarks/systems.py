"""The page of all systems, docs/systems.md: what each is, how large, what a step costs, what travels.

    python benchmarks/systems.py             writes the tables: benchmarks/systems.yaml, counts, cells of the grid
    python benchmarks/systems.py --check     exit code 1 if that would change anything
    python benchmarks/systems.py --count     first counts networks, and takes time and memory of their steps: minutes of
                                             one core; --count sizes, steps or memory: that alone
    python benchmarks/systems.py --missing   the cells that the page lacks, as benchmarks/gpu/grid.py takes them

How costs are counted says benchmarks/system_costs.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.grid.methods.presets import METHODS, MORE_PASSES, SIX_HOSPITALS
from benchmarks.measured import stamp, write
from benchmarks.pages import as_head, as_row, with_body
from benchmarks.system_costs import PARTS, measure
from dusss_core.files import write_text
from feddusss import cli, configfile

if TYPE_CHECKING:
    pass

HERE = Path(__file__).parent
FACTS = HERE / "systems.yaml"
COUNTED = HERE / "results" / "systems" / "counted.json"
PAGE = HERE.parent / "docs" / "systems.md"
BEGIN, END = "<!-- systems: written by benchmarks/systems.py -->", "<!-- systems: end -->"
RESULTS_BEGIN, RESULTS_END = "<!-- results: written by benchmarks/systems.py -->", "<!-- results: end -->"
_REFERENCE = "dusss"
"""The row that gaps are to."""


class Column(NamedTuple):
    """Cells that stand beneath one another on the page."""

    head: str
    share: float
    """Of labels."""
    setting: str = "centralized"
    dataset: str = "qata"
    profile: str = "cpu"
    federation: str = ""
    """Of the rows' methods: what the grid has behind their names."""

    @property
    def files(self) -> str:
        """Pattern of the cells' files."""
        return f"{self.dataset}-{self.profile}-{100 * self.share:g}pct-*{self.federation}-{self.setting}-seed*.json"


_FIRST = Column("5 %", 0.05)
_FEW, _MORE, _SITES = Column("1 %", 0.01), Column("10 %", 0.1), Column("5 %, three sites", 0.05, "federated")
_HOSPITALS = Column(
    "PolypGen, 10 %, six hospitals", 0.1, "federated", "polypgen", "cpu_imagenet", federation=f"_{SIX_HOSPITALS}"
)
_PASSES = _HOSPITALS._replace(head="the same, more passes", federation=f"_{MORE_PASSES}")
_COLUMNS = (_FEW, _FIRST, _MORE, _SITES, _HOSPITALS, _PASSES)
_WANTED = ((_FIRST, 1), (_SITES, 1), (_FIRST, 2), (_FIRST, 3), (_FEW, 1), (_MORE, 1))
"""Cells of each row that a GPU machine with QaTa-COV19 can measure, the most wanted first, each with its seed."""


class System(BaseModel):
    """What is known of a system beside what is counted."""

    model_config = ConfigDict(extra="forbid")

    name: str
    row: str
    """Of the accuracy grid."""
    what: str
    published: str
    """Parameters and multiply-accumulates at 224 that the paper's table gives; empty: it has none."""
    paper: dict[int, float] = {}
    """Percent of labels -> Dice x 100 on QaTa-COV19 in the paper's Table 1."""
    stays: str
    """What it keeps at the site beside pictures, masks and sentences."""
    text: str
    """Where sentences are read."""
    licence: str
    """Of the original's code."""
    departures: str


class Facts(BaseModel):
    """benchmarks/systems.yaml."""

    model_config = ConfigDict(extra="forbid")

    systems: list[System]


def main(argv: list[str] | None = None) -> int:
    """Count if asked to, then rewrite or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--count", nargs="*", choices=PARTS, metavar="PART", help=f"count anew: {', '.join(PARTS)} (all)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns of timing (5)")
    parser.add_argument("--missing", action="store_true", help="print the cells that are not measured, and no more")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the page is not current")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_main, parser, argv)


def _main(arguments: argparse.Namespace) -> int:
    facts = configfile.load(Facts, FACTS)
    if arguments.missing:
        print("\n".join(missing(facts, read_cells(HERE / "results"))))
        return cli.OK
    if arguments.count is not None:
        _count(facts, arguments.count or PARTS, arguments.repeats)
    counted = json.loads(COUNTED.read_text(encoding="utf-8"))["rows"]
    page = with_body(PAGE, BEGIN, END, table(facts, counted))
    page = with_body(PAGE, RESULTS_BEGIN, RESULTS_END, results_table(facts, read_cells(HERE / "results")), page)
    if arguments.check:
        return cli.OK if page == PAGE.read_text(encoding="utf-8") else cli.FAILED
    write_text(PAGE, page)
    return cli.OK


def _count(facts: Facts, parts: Sequence[str], repeats: int) -> None:
    """Measure `parts`; others stay as they were."""
    before = json.loads(COUNTED.read_text(encoding="utf-8"))
    found = measure([system.row for system in facts.systems], parts, repeats)
    rows = {row: {**before["rows"].get(row, {}), **new} for row, new in found.items()}
    write(COUNTED, {"measured": before["measured"] | dict.fromkeys(parts, stamp()), "rows": rows})


def table(facts: Facts, counted: dict[str, dict[str, Any]]) -> str:
    """The two tables: sizes and costs, then where things are and what differs."""
    head = ("system", "row", "trained / deployed parameters, M", "multiply-accumulates, G", "published")
    lines = as_head([*head, *(f"{what}, step 2 (step 1)" for what in ("a step", "sent in a round, MB", "memory, GB"))])
    for system in facts.systems:
        row = counted[system.row]
        sizes = f"{row['trained'] / 1e6:.2f} / {row['deployed'] / 1e6:.2f}"
        cells = (system.name, f"`{system.row}`", sizes, f"{row['macs'] / 1e9:.2f}", system.published)
        costs = (_both(row, "step", 1, ".1f"), _both(row, "sent", 1e6, ".1f"), _both(row, "memory", 1e9, ".2f"))
        lines.append(as_row([*cells, *costs]))
    lines += ["", *as_head(["row", "what it is", "text", "stays at the site", "original's licence", "departures"])]
    for system in facts.systems:
        cells = (f"`{system.row}`", system.what, system.text, system.stays, system.licence, system.departures)
        lines.append(as_row(cells))
    return "\n".join(lines) + "\n"


def _both(row: Mapping[str, float], name: str, unit: float, form: str) -> str:
    """Of step 2, and in brackets of step 1, where there is one."""
    first = row.get(f"{name}_1")
    return f"{row[name] / unit:{form}}" + ("" if first is None else f" ({first / unit:{form}})")


class Score(NamedTuple):
    """Dice x 100 of a cell."""

    dice: float
    told: float | None
    """With the sentence where the model is used; None: the network is given none."""


Cells = dict[tuple[str, Column], dict[int, Score]]
"""Row and column -> seed -> Dice."""


def read_cells(folder: Path) -> Cells:
    """The cells of the page's columns."""
    found: Cells = defaultdict(dict)
    for column in _COLUMNS:
        for path in sorted(folder.glob(column.files)):
            cell = json.loads(path.read_text(encoding="utf-8"))
            test = cell["test"]
            told = 100 * test["text_dice"] if test.get("text_dice") is not None else None
            row = cell["method"].removesuffix(column.federation)
            found[row, column][cell["seed"]] = Score(100 * test["dice"], told)
    return found


def missing(facts: Facts, cells: Cells) -> list[str]:
    """A line for each cell that is wanted and not measured: METHOD LABELS SETTING SEED PROFILE."""
    return [
        f"{row} {column.share:g} {column.setting} {seed} {column.profile}"
        for column, seed in _WANTED
        for row, _ in _variants(facts)
        if seed not in cells.get((row, column), {})
    ]


def results_table(facts: Facts, cells: Cells) -> str:
    """Dice, and the gap to DuSSS, here and in the paper; rows in order of the paper's 25 %, then of ours at 5 %."""
    lines = as_head(["system", "row", "paper, 25 %", "paper, 50 %", *(column.head for column in _COLUMNS)])
    paper = next(system.paper for system in facts.systems if system.row == _REFERENCE)
    shown = [(row, system) for row, system in _variants(facts) if any((row, column) in cells for column in _COLUMNS)]

    def place(entry: tuple[str, System]) -> tuple[float, float]:
        row, system = entry
        scores = cells.get((row, _FIRST), {}).values()
        return -system.paper.get(25, 0), -fmean([score.dice for score in scores] or [0])

    for row, system in sorted(shown, key=place):
        theirs = [_gap(system.paper.get(share), paper[share]) for share in (25, 50)]
        ours = [_ours(cells, row, column) for column in _COLUMNS]
        lines.append(as_row([system.name, f"`{row}`", *theirs, *ours]))
    return "\n".join(lines) + "\n"


def _variants(facts: Facts) -> list[tuple[str, System]]:
    """Rows of the grid that are one of the systems, on the network of its paper or on the student's own."""
    of_row = {system.row: system for system in facts.systems}
    return [(row, of_row[row.removesuffix(_SAME)]) for row in METHODS if row.removesuffix(_SAME) in of_row]


_SAME = "_same"
"""A row on the student's own network."""


def _ours(cells: Cells, row: str, column: Column) -> str:
    """Its mean over seeds, and the mean gap over those that the reference has too."""
    scores, reference = cells.get((row, column)), cells.get((_REFERENCE, column), {})
    if not scores:
        return ""
    dice = fmean(score.dice for score in scores.values())
    gaps = [scores[seed].dice - reference[seed].dice for seed in scores.keys() & reference.keys()]
    told = [score.told for score in scores.values() if score.told is not None]
    return (
        _gap(dice, dice - fmean(gaps) if gaps else None)
        + (f"; with the sentence {fmean(told):.1f}" if told else "")
        + (f", {len(scores)} seeds" if len(scores) > 1 else "")
    )


def _gap(dice: float | None, reference: float | None) -> str:
    if dice is None:
        return ""
    if reference is None or abs(dice - reference) < 1e-9:
        return f"{dice:.1f}"
    return f"{dice:.1f} ({dice - reference:+.1f})"


if __name__ == "__main__":
    sys.exit(main())
