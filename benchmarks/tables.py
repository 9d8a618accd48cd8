"""Writes the tables and charts of accuracy into docs/results.md, from the files of benchmarks/accuracy.py alone.

    python benchmarks/tables.py             rewrites what lies between the two markers, and the charts
    python benchmarks/tables.py --check     exit code 1 if that would change anything

Dice x 100 on test pictures, mean over seeds with the range where there are several. *Gap closed*: (method -
supervised) / (ceiling - supervised), the ceiling being supervised training with every label. A difference between two
cells is the mean over the seeds that both have, in points of Dice x 100. Where these are two or more, a 95 % interval
over seeds and pictures stands beside it (benchmarks/grid/bootstrap.py); single runs have none, and are not tested.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.by_site import LEFT_OUT, site_by_site
from benchmarks.grid.bootstrap import Difference, paired_difference
from benchmarks.grid.cell import OWN_TEXT
from benchmarks.grid.measures import SIZES
from benchmarks.pages import as_head, as_row, with_body
from dusss_core.files import write_text
from feddusss import cli

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
BEGIN, END = "<!-- accuracy: written by benchmarks/tables.py -->", "<!-- accuracy: end -->"
CHARTS = PAGE.parent / "images"
_ROWS = {
    "table2_": "SSS, DCL and Ltg on (1) or off (0), every row with label supervision and consistency of the grounding "
    "decoder (111 is `dusss`, 000 is `clip`)",
    "paper_table2_": "SSS, DCL and Ltg on (1) or off (0) to the letter of the paper, where no label supervises the "
    "grounding decoder (111 is `paper`)",
    "constant_sentence": "DuSSS, every picture with the same sentence",
    "wrong_sentence": "DuSSS, each picture with another picture's sentence, in training and test",
    "picture_only_teacher": "DuSSS' decoder as a teacher that sees pictures alone: one sentence, of the contrast only "
    "that all pictures be equally near to it, no cross-attention; first weights, labels, consistency and mirror image "
    "are those of DuSSS",
    "_fedbn": "normalisation layers stay at the sites (`local_norm`)",
    "_fixbn": "statistics of shared normalisation layers stay as they are for the second half of the rounds, and are "
    "trained with (`fixed_statistics`)",
    "_fixbn_estimated": "statistics of shared normalisation layers are those of plain training pictures, stay as they "
    "are for the second half of the rounds, and are trained with (`batch_statistics: estimated`, `fixed_statistics`)",
    "_polypgen": "`…_fixbn_estimated` with five passes a round in step 1 and three in step 2, as the preset "
    "`polypgen` has it",
    "_estimated": "sites send statistics of plain training pictures (`batch_statistics: estimated`)",
    "_fedprox": "FedProx, mu 0.01",
    "_fedadam": "FedAdam, server learning rate 0.01",
}
"""What rows are whose name does not say it, by its beginning; by its end where that begins with `_`."""
_COMPARED = ("mean_teacher", "supervised", "constant_sentence", "wrong_sentence", "picture_only_teacher")
# short, since a chart is narrow
_IN_CHART = {"supervised": "supervised", "mean_teacher": "teacher", "dusss": "DuSSS"}

Result = dict[str, Any]
Group = tuple[str, str, str]
"""Data set, profile, setting."""


def main(argv: list[str] | None = None) -> int:
    """Rewrite or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write into")
    parser.add_argument("--charts", type=Path, default=CHARTS, help="folder of the charts (docs/images)")
    parser.add_argument("--check", action="store_true", help="write nothing")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_write, parser, argv)


def _write(arguments: argparse.Namespace) -> int:
    files = sorted(arguments.results.glob("*.json"))
    results = [with_text_in_method(json.loads(path.read_text(encoding="utf-8"))) for path in files]
    drawn = charts(results)
    files = {arguments.page: with_body(arguments.page, BEGIN, END, tables(results, drawn))}
    files |= {arguments.charts / name: svg for name, svg in drawn.items()}
    if arguments.check:
        same = all(file.is_file() and file.read_text(encoding="utf-8") == text for file, text in files.items())
        return cli.OK if same else cli.FAILED
    arguments.charts.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        write_text(file, text)
    return cli.OK


def tables(results: Iterable[Result], drawn: Container[str] = ()) -> str:
    """One table for each data set, profile and setting: a row per method, a column per share of labels; and below it
    its chart, if that is among the `drawn` files. Then, of each data set and profile, settings and sites compared."""
    results = list(results)
    # of hospitals that were left out there is one table, not one for each
    groups = _grouped(result for result in results if not result["setting"].startswith(LEFT_OUT))
    every = {**groups, **_grouped(on_unread(results))}
    parts = [_table(key, members, drawn) for key, members in sorted(every.items())]
    for dataset, profile in sorted({key[:2] for key in groups}):
        same = {key[2]: members for key, members in groups.items() if key[:2] == (dataset, profile)}
        if len(same) > 1:
            parts.append(_settings(f"{dataset} · {profile} · settings compared", same))
        of_both = [r for r in results if (r["dataset"], r["profile"]) == (dataset, profile)]
        if sites := site_by_site(f"{dataset} · {profile} · site by site", of_both):
            parts.append(sites)
    return "\n".join(parts) or "No cell has been measured yet.\n"


def charts(results: Iterable[Result]) -> dict[str, str]:
    """Dice over the share of labels, mean over the seeds that all cells of the chart have: file name -> SVG, of each
    table in which a method was measured with several shares."""
    results = [result for result in results if not result["setting"].startswith(LEFT_OUT)]
    return {_chart_name(key): svg for key, members in _grouped(results).items() if (svg := _chart(key, members))}


def on_unread(results: Iterable[Result]) -> list[Result]:
    """The cells that were tested on pictures that no cell draws too (`accuracy.py --unread`), as if that were their
    test; a setting of its own. They are the same pictures for every seed; a cell's own are drawn by its seed."""
    return [
        {
            **result,
            "setting": f"{result['setting']} · {unread['n']:,} test pictures that no cell draws",
            "test": unread,
            "test_dice_per_picture": unread["dice_per_picture"],
            "same_pictures": True,
            "with_sentence": {"dice": unread["with_sentence"]},
            "text_mask": {"dice": None},
        }
        for result in results
        if (unread := result.get("unread"))
    ]


def with_text_in_method(result: Result) -> Result:
    """The cell as a row of its own where it reads another column's sentences than the data set's own."""
    text = result.get("text", OWN_TEXT)
    return result if text == OWN_TEXT else {**result, "method": f"{result['method']}, {text}"}


def _grouped(results: Iterable[Result]) -> dict[Group, list[Result]]:
    groups: dict[Group, list[Result]] = defaultdict(list)
    for result in results:
        groups[result["dataset"], result["profile"], result["setting"]].append(result)
    return groups


def _chart_name(key: Group) -> str:
    return f"accuracy_{'_'.join(key)}.svg"


def _chart(key: Group, results: Sequence[Result]) -> str | None:
    from benchmarks.pages import standalone
    from server.report import plots

    shares = sorted({result["labels"] for result in results})
    cells = _on_common_seeds({(method, share): _of(results, method, share) for method in _IN_CHART for share in shares})
    lines = [*((name, method, "test") for method, name in _IN_CHART.items()), ("+ sentence", "dusss", "with_sentence")]
    series = []
    for colour, (name, method, figure) in enumerate(lines):
        dice = [[r[figure]["dice"] for r in cells.get((method, share), ())] for share in shares]
        points = [(x, fmean(values)) for x, values in enumerate(dice) if values and None not in values]
        if len(points) > 1:
            series.append(plots.Series(name, points, colour=colour))
    if not series:
        return None
    told = "; ".join(f"{one.name}: " + ", ".join(f"{value:.3f}" for _, value in one.points) for one in series)
    svg = plots.line_chart(
        f"Test Dice over the share of labels, {' '.join(key)}. {told}",
        series,
        lambda value: f"{value:.2f}",
        across="% of masks that may be trained on",
        show_x=lambda x: f"{100 * shares[x]:g}",
    )
    return standalone(str(svg))


def _table(key: Group, results: Sequence[Result], drawn: Container[str]) -> str:
    shares = sorted({result["labels"] for result in results})
    methods = sorted({result["method"] for result in results}, key=lambda name: ("table2" in name, name))
    head = ["method", *[f"{100 * share:g} %" for share in shares]]
    lines = [f"### {' · '.join(key)}", "", *as_head(head)]
    for method in methods:
        cells = [_of(results, method, share) for share in shares]
        lines.append(
            as_row([method, *[_cell(cell, results, share) for cell, share in zip(cells, shares, strict=True)]])
        )
    name = _chart_name(key)
    chart = [f"![Dice over the share of labels](images/{name})", ""] if name in drawn else []
    named = {_row(method) for method in methods}
    told = [name for name in _ROWS if name in named]
    shown = {name: f"{'…' if name.startswith('_') else ''}{name}{'…' if name.endswith('_') else ''}" for name in told}
    rows = [f"- `{shown[name]}`: {_ROWS[name]}." for name in told]
    notes = [*rows, *_more(results, methods, shares)]
    blocks = [*chart, *notes, *([""] if notes else []), *_own_students(results, methods, shares)]
    blocks += _measures(results, methods, shares)
    return "\n".join([*lines, "", *blocks]).rstrip() + "\n"


def _row(method: str) -> str | None:
    """Of _ROWS that which says most of it."""
    fitting = [name for name in _ROWS if (method.endswith if name.startswith("_") else method.startswith)(name)]
    return max(fitting, key=len, default=None)


def _own_students(results: Sequence[Result], methods: Sequence[str], shares: Sequence[float]) -> list[str]:
    """Of methods whose sites have students of their own (`personal`): these and the shared one on the sites' pictures,
    where each site counts the same; means over seeds."""
    rows = []
    for method, share in product(methods, shares):
        if cell := [r["personal"] for r in _of(results, method, share) if "personal" in r]:
            both = [[some["shared"] for some in cell], cell]
            told = [
                " / ".join(f"{100 * fmean(one[name] for one in ones):.1f}" for ones in both)
                for name in ("dice_mean", "dice_worst")
            ]
            rows.append(as_row([f"{method}, {100 * share:g} %", *told]))
    head = ["shared student / each site's own", "mean over sites", "worst site"]
    return [*as_head(head), *rows, ""] if rows else []


def _cell(cell: Sequence[Result], results: Sequence[Result], share: float) -> str:
    if not cell:
        return ""
    dice = [100 * result["test"]["dice"] for result in cell]
    text = f"{fmean(dice):.1f}"
    if len(dice) > 1:
        text += f" ({min(dice):.1f} to {max(dice):.1f})"
    closed = gap_closed(cell, _of(results, "supervised", share), _of(results, "supervised", 1.0))
    if closed is None or share == 1:
        return text
    return f"{text}, {100 * closed:.0f} % of the gap" if closed >= 0 else f"{text}, below supervised"


def _settings(title: str, by_setting: dict[str, list[Result]]) -> str:
    """A row for each method and share that was measured in several settings, on the seeds that all of them have."""
    settings = sorted(by_setting)
    lines = [f"### {title}", "", *as_head(["", *settings, "federated against"])]
    keys = sorted({(r["method"], r["labels"]) for some in by_setting.values() for r in some})
    for method, share in keys:
        cells = _on_common_seeds({name: _of(some, method, share) for name, some in by_setting.items()})
        if len(cells) < 2:
            continue
        dice = {name: f"{100 * fmean(r['test']['dice'] for r in cell):.1f}" for name, cell in cells.items()}
        differences = [
            f"{name} {_told(apart)}"
            for name in settings
            if name != "federated" and (apart := difference(cells.get("federated", []), cells.get(name, [])))
        ]
        seeds = sorted({r["seed"] for cell in cells.values() for r in cell})
        row = f"{method}, {100 * share:g} %, seed {', '.join(map(str, seeds))}"
        lines.append(as_row([row, *[dice.get(name, "") for name in settings], "; ".join(differences)]))
    return "\n".join([*lines, ""])


def gap_closed(cell: Sequence[Result], supervised: Sequence[Result], ceiling: Sequence[Result]) -> float | None:
    """(method - supervised) / (ceiling - supervised), means over the seeds that all have; None without such a seed or
    without a gap."""
    three = (supervised, ceiling, cell)
    seeds = set.intersection(*({r["seed"] for r in some} for some in three))
    if not seeds or cell[0]["method"] == "supervised":
        return None
    low, high, reached = (fmean(r["test"]["dice"] for r in some if r["seed"] in seeds) for some in three)
    return (reached - low) / (high - low) if high > low else None


def difference(a: Sequence[Result], b: Sequence[Result]) -> Difference | None:
    """Dice x 100 of `a` minus that of `b`, over the seeds that both have; None without such a seed."""
    by_seed = {result["seed"]: result for result in b}
    both = [(r, by_seed[r["seed"]]) for r in a if r["seed"] in by_seed]
    pairs = [[[value / 10 for value in r["test_dice_per_picture"]] for r in pair] for pair in both]
    pairs = [(x, y) for x, y in pairs if len(x) == len(y)]
    crossed = all(r.get("same_pictures", False) for pair in both for r in pair)
    return paired_difference(pairs, crossed=crossed) if pairs else None


def _told(apart: Difference) -> str:
    if apart.interval is None:
        return _signed(apart.mean)
    low, high = map(_signed, apart.interval)
    return f"{_signed(apart.mean)} ({low} to {high}, {apart.seeds} seeds)"


def _signed(points: float) -> str:
    return f"{round(points, 1) or 0.0:+.1f}"  # no -0.0


def _more(results: Sequence[Result], methods: Sequence[str], shares: Sequence[float]) -> list[str]:
    lines = []
    for share in shares:
        dusss = _of(results, "dusss", share)
        notes = []
        for other in _COMPARED:
            if apart := difference(dusss, _of(results, other, share)):
                notes.append(f"against {other} {_told(apart)}")
        text = [r["text_mask"]["dice"] for r in dusss if r["text_mask"]["dice"] is not None]
        merged = [r["with_sentence"]["dice"] for r in dusss if r["with_sentence"]["dice"] is not None]
        if text:
            notes.append(f"text-guided masks on unlabelled training pictures {100 * fmean(text):.1f}")
        if merged:
            notes.append(f"with a sentence at inference {100 * fmean(merged):.1f}")
        for method in methods:
            for r in _of(results, method, share):
                if "federations" in r:
                    each = ", ".join(f"{name} {100 * dice:.1f}" for name, dice in r["federations"].items())
                    lines.append(f"- Each site's model, {method}, {100 * share:g} %, seed {r['seed']}: {each}.")
        if notes:
            lines.append(f"- DuSSS, {100 * share:g} %: {'; '.join(notes)}.")
    return lines


def _measures(results: Sequence[Result], methods: Sequence[str], shares: Sequence[float]) -> list[str]:
    """What benchmarks/grid/measures.py counts, of the cells whose files have it: means over seeds."""
    rows, areas = [], []
    for method, share in product(methods, shares):
        cell = [r for r in _of(results, method, share) if "pooled_dice" in r["test"]]
        if not cell:
            continue
        masks = [[r[key] for r in cell] for key in ("test", "text_mask", "with_sentence")]
        rows.append(as_row([f"{method}, {100 * share:g} %", *map(_four, masks)]))
        told = [(who, _areas(some)) for who, some in zip(("student", "text-guided masks"), masks, strict=False)]
        areas += [f"- {who.capitalize()}, {method}, {100 * share:g} %: {text}." for who, text in told if text]
    if not rows:
        return []
    head = ["Dice / pooled Dice / precision / recall", "student", "text-guided mask", "both, with a sentence"]
    title = "Predicted over true area, by the share of the picture that the finding takes (and the number of pictures):"
    return [*as_head(head), *rows, *(["", title, "", *areas] if areas else [])]


def _four(masks: Sequence[Result]) -> str:
    # of a text-guided mask "dice" is that on unlabelled training pictures
    dice = "test_dice" if "test_dice" in masks[0] else "dice"
    found = [[some.get(name) for some in masks] for name in (dice, "pooled_dice", "precision", "recall")]
    return "" if any(None in values for values in found) else " / ".join(f"{100 * fmean(v):.1f}" for v in found)


def _areas(masks: Sequence[Result]) -> str:
    """Mean of the seeds' areas, and how many pictures all of them have."""
    found = [some.get("area_by_size", {}) for some in masks]
    by_size = {size: [one[size] for one in found if size in one] for size in SIZES}
    return ", ".join(
        f"{size} {fmean(one['area'] for one in ones):.2f} ({sum(one['n'] for one in ones)})"
        for size, ones in by_size.items()
        if ones
    )


def _on_common_seeds(cells: dict[Any, list[Result]]) -> dict[Any, list[Result]]:
    """The cells that were measured, reduced to the seeds that all of them have; empty where there is none."""
    measured = {name: cell for name, cell in cells.items() if cell}
    seeds = set.intersection(*({r["seed"] for r in cell} for cell in measured.values())) if measured else set()
    return {name: [r for r in cell if r["seed"] in seeds] for name, cell in measured.items()} if seeds else {}


def _of(results: Sequence[Result], method: str, share: float) -> list[Result]:
    return [result for result in results if result["method"] == method and result["labels"] == share]


if __name__ == "__main__":
    sys.exit(main())
