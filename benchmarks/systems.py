"""The page of all systems, docs/systems.md: what each is, how large, what a step costs, what travels.

    python benchmarks/systems.py             writes the tables: benchmarks/systems.yaml, counts, cells of the grid
    python benchmarks/systems.py --check     exit code 1 if that would change anything
    python benchmarks/systems.py --count     first counts the networks and times their steps: minutes of one core
    python benchmarks/systems.py --missing   the cells that the page lacks, as benchmarks/gpu/grid.py takes them

Parameters and multiply-accumulates are those of the network that the paper's size has here (profile gpu of the
accuracy grid: 224 x 224 in three channels, one logit for one class), counted by torch's own counter, attention
included. Trained: all that an optimiser moves, and so all that travels. Deployed: what a logit depends on. A step is
timed at the size of profile cpu (112 x 112, 16 pictures, one thread), in turns with a step of supervised training;
pictures are made up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.grid.cell import Cell
from benchmarks.grid.methods.presets import METHODS
from benchmarks.measured import stamp, write
from benchmarks.pages import with_body
from dusss_core.config import TrainingConfig
from dusss_core.files import write_text
from dusss_core.phases import Phase
from feddusss import cli, configfile

if TYPE_CHECKING:
    from torch import nn

HERE = Path(__file__).parent
FACTS = HERE / "systems.yaml"
COUNTED = HERE / "results" / "systems" / "counted.json"
PAGE = HERE.parent / "docs" / "systems.md"
BEGIN, END = "<!-- systems: written by benchmarks/systems.py -->", "<!-- systems: end -->"
RESULTS_BEGIN, RESULTS_END = "<!-- results: written by benchmarks/systems.py -->", "<!-- results: end -->"
_BASE = "supervised"
"""The row whose step is 1."""
_REFERENCE = "dusss"
"""The row that gaps are to."""
_SHARES = (0.01, 0.05, 0.1)
_POOLED, _SITES = "centralized", "federated"
_COLUMNS = (*((share, _POOLED) for share in _SHARES), (0.05, _SITES))
"""Share of labels and setting of the page's columns."""
_FIRST = (0.05, _POOLED)
_WANTED = (
    (*_FIRST, 1),
    (0.05, _SITES, 1),
    (*_FIRST, 2),
    (*_FIRST, 3),
    *((share, _POOLED, 1) for share in _SHARES if share != 0.05),
)
"""Cells of each row, the most wanted first: share of labels, setting, seed."""


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
    parser.add_argument("--count", action="store_true", help="count and time them anew")
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
    if arguments.count:
        rows = [system.row for system in facts.systems]
        write(COUNTED, {**stamp(), "rows": measure(rows, arguments.repeats)})
    counted = json.loads(COUNTED.read_text(encoding="utf-8"))["rows"]
    page = with_body(PAGE, BEGIN, END, table(facts, counted))
    page = with_body(PAGE, RESULTS_BEGIN, RESULTS_END, results_table(facts, read_cells(HERE / "results")), page)
    if arguments.check:
        return cli.OK if page == PAGE.read_text(encoding="utf-8") else cli.FAILED
    write_text(PAGE, page)
    return cli.OK


def measure(rows: list[str], repeats: int) -> dict[str, dict[str, Any]]:
    """Row of the grid -> "trained", "deployed", "macs" of its student at the paper's size, "vlm", the parameters that
    step 1 sends (0: there is none), and "step", "step_1", the time of a step over that of supervised training."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            print(row, flush=True)
            found[row] = {**_size(row, Path(folder)), **_cost(row, repeats, Path(folder))}
    return found


def _settings(row: str, profile: str, folder: Path) -> TrainingConfig:
    from benchmarks.gpu.made_up import with_made_up_text

    values = Cell("qata", 0.25, row, "centralized", profile, seed=1).values(METHODS[row])
    known = {key: value for key, value in values.items() if key in TrainingConfig.model_fields}
    return with_made_up_text(TrainingConfig.model_validate(known), folder)


def _size(row: str, folder: Path) -> dict[str, int]:
    from dusss_core.build import build_student, build_vlm

    config = _settings(row, "gpu", folder)
    vlm = build_vlm(config) if config.method.text_mask else None
    return {**count(build_student(config), config), "vlm": _parameters(vlm) if vlm else 0}


def count(network: nn.Module, config: TrainingConfig) -> dict[str, int]:
    """ "trained" and "deployed" parameters of a student, and "macs", multiply-accumulates for one picture
    (and its sentence, if it is given one)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dusss_core.models.words import Words
    from dusss_core.objectives import reads_sentences
    from dusss_core.text.encoder import embedding_width

    network = network.to("meta").eval()
    shown = [torch.zeros(1, config.image.channels, config.image.size, config.image.size, device="meta")]
    if reads_sentences(config):
        tokens = torch.zeros(1, config.vlm.text.max_tokens, embedding_width(config.vlm.text), device="meta")
        shown.append(Words(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device="meta")))
    with FlopCounterMode(display=False) as counter:
        logits = network(*shown)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    used = torch.autograd.grad(logits.sum(), weights, allow_unused=True)
    deployed = sum(weight.numel() for weight, gradient in zip(weights, used, strict=True) if gradient is not None)
    return {"trained": _parameters(network), "deployed": deployed, "macs": counter.get_total_flops() // 2}


def _parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


def _cost(row: str, repeats: int, folder: Path) -> dict[str, float]:
    """Ratios of a step's time: median over turns, in each of which both are timed."""
    import torch

    from benchmarks.gpu.variants import Training

    cpu = torch.device("cpu")
    torch.set_num_threads(1)

    def work(name: str, phase: Phase):
        config = _settings(name, "cpu", folder)
        config.pretrain.rounds = config.segment.rounds = 1000  # as Training expects: it trains the round halfway
        return Training(config, phase, config.segment.batch, cpu)

    def seconds(training) -> float:
        began = time.process_time()
        training.run(2)
        return (time.process_time() - began) / 2

    base, found = work(_BASE, Phase.SEGMENT), {}
    for name, phase in (("step", Phase.SEGMENT), ("step_1", Phase.PRETRAIN)):
        if phase == Phase.PRETRAIN and not _settings(row, "cpu", folder).method.text_mask:
            continue
        other = work(row, phase)
        base.run(2), other.run(2)
        found[name] = statistics.median(seconds(other) / seconds(base) for _ in range(repeats))
    return found


def table(facts: Facts, counted: dict[str, dict[str, Any]]) -> str:
    """The two tables: sizes and costs, then where things are and what differs."""
    head = ("system", "row", "trained / deployed parameters, M", "multiply-accumulates, G", "published")
    lines = _head(*head, "a step of step 2", "of step 1")
    for system in facts.systems:
        row = counted[system.row]
        sizes = f"{row['trained'] / 1e6:.2f} / {row['deployed'] / 1e6:.2f}"
        first = f"{row['step_1']:.1f}" if "step_1" in row else ""
        cells = (system.name, f"`{system.row}`", sizes, f"{row['macs'] / 1e9:.2f}", system.published)
        lines.append(f"| {' | '.join(cells)} | {row['step']:.1f} | {first} |")
    lines += ["", *_head("row", "what it is", "text", "stays at the site", "original's licence", "departures")]
    for system in facts.systems:
        cells = (f"`{system.row}`", system.what, system.text, system.stays, system.licence, system.departures)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


class Score(NamedTuple):
    """Dice x 100 of a cell."""

    dice: float
    told: float | None
    """With the sentence where the model is used; None: the network is given none."""


Cells = dict[tuple[str, float, str], dict[int, Score]]
"""Row, share of labels and setting -> seed -> Dice."""


def read_cells(folder: Path) -> Cells:
    """The cells of QaTa-COV19 in profile cpu, pooled and at three sites."""
    found: Cells = defaultdict(dict)
    paths = [path for setting in (_POOLED, _SITES) for path in sorted(folder.glob(f"qata-cpu-*-{setting}-seed*.json"))]
    for path in paths:
        cell = json.loads(path.read_text(encoding="utf-8"))
        test = cell["test"]
        told = 100 * test["text_dice"] if test.get("text_dice") is not None else None
        found[cell["method"], cell["labels"], cell["setting"]][cell["seed"]] = Score(100 * test["dice"], told)
    return found


def missing(facts: Facts, cells: Cells) -> list[str]:
    """A line for each cell that is wanted and not measured: METHOD LABELS SETTING SEED PROFILE."""
    return [
        f"{row} {share:g} {setting} {seed} cpu"
        for share, setting, seed in _WANTED
        for row, _ in _variants(facts)
        if seed not in cells.get((row, share, setting), {})
    ]


def results_table(facts: Facts, cells: Cells) -> str:
    """Dice, and the gap to DuSSS, here and in the paper; rows in order of the paper's 25 %, then of ours at 5 %."""
    columns = [f"{100 * share:g} %" + (", three sites" if setting == _SITES else "") for share, setting in _COLUMNS]
    lines = _head("system", "row", "paper, 25 %", "paper, 50 %", *columns)
    paper = next(system.paper for system in facts.systems if system.row == _REFERENCE)
    shown = [(row, system) for row, system in _variants(facts) if any((row, *column) in cells for column in _COLUMNS)]

    def place(entry: tuple[str, System]) -> tuple[float, float]:
        row, system = entry
        scores = cells.get((row, *_FIRST), {}).values()
        return -system.paper.get(25, 0), -fmean([score.dice for score in scores] or [0])

    for row, system in sorted(shown, key=place):
        theirs = [_gap(system.paper.get(share), paper[share]) for share in (25, 50)]
        ours = [_ours(cells, row, column) for column in _COLUMNS]
        lines.append(f"| {' | '.join((system.name, f'`{row}`', *theirs, *ours))} |")
    return "\n".join(lines) + "\n"


def _variants(facts: Facts) -> list[tuple[str, System]]:
    """Rows of the grid that are one of the systems, on the network of its paper or on the student's own."""
    of_row = {system.row: system for system in facts.systems}
    return [(row, of_row[row.removesuffix(_SAME)]) for row in METHODS if row.removesuffix(_SAME) in of_row]


_SAME = "_same"
"""A row on the student's own network."""


def _ours(cells: Cells, row: str, column: tuple[float, str]) -> str:
    """Its mean over seeds, and the mean gap over those that the reference has too."""
    scores, reference = cells.get((row, *column)), cells.get((_REFERENCE, *column), {})
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


def _head(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]


if __name__ == "__main__":
    sys.exit(main())
