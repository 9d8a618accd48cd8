"""The results part of the page: each site's test figures with what stands behind them, and the pseudo-labels."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from server.report import plots, strips
from server.report.figures import dice_of
from server.report.figures import results as results_of
from server.report.quantities import show_figure
from server.runs.lines import mapping, number
from server.runs.runfiles import Run

if TYPE_CHECKING:
    from markupsafe import Markup

_FIGURES = ("dice", "dice_pooled", "iou", "hd95")


def site_rows(run: Run) -> list[dict[str, Any]]:
    """A row for each site that trained, then for each that was only tested on. A figure of `_FIGURES` is {"value",
    "low", "high"}, None where it is not known."""
    text_mask = mapping(run.summary.get("text_mask"))
    outside = mapping(run.summary.get("external_test"))
    found = results_of(run)
    rows = []
    for name in [*(name for name in run.sites if name not in outside), *sorted(outside)]:
        site = mapping(outside[name]) if name in outside else found.get(name, {})
        keys = ("n_labeled", "n_unlabeled", "n_test", "n_positive", "text_dice")
        row: dict[str, Any] = {key: number(site.get(key)) for key in keys}
        row |= {figure: _measured(site, figure) for figure in _FIGURES}
        local, own = dice_of(run, "local", name), row["dice"]["value"]
        row["over_local"] = own - local if own is not None and local is not None else None
        row["text_mask"] = number(text_mask.get(name))
        row["personal"] = number(site.get("personal_dice"))
        row["bins"] = _bins(site.get("dice_bins"))
        rows.append({"name": name, "outside": name in outside, **row})
    return rows


def outside_rows(run: Run) -> list[dict[str, Any]]:
    """What a simulation measured itself at private sites, whose own figures do not leave them."""
    rows = []
    for name, raw in sorted(mapping(mapping(run.summary.get("outside")).get("sites")).items()):
        site, paid = mapping(raw), mapping(mapping(raw).get("privacy"))
        row = {key: number(site.get(key)) for key in ("n_test", "n_positive")}
        row |= {figure: _measured(site, figure) for figure in _FIGURES} | {"bins": _bins(site.get("dice_bins"))}
        rows.append({"name": name, **row, **{key: number(paid.get(key)) for key in ("epsilon", "spent")}})
    return rows


def class_table(run: Run) -> dict[str, Any]:
    """Of several classes: their names, and for each site each one's Dice of both kinds and its pictures."""
    found = {**results_of(run), **{k: mapping(v) for k, v in mapping(run.summary.get("external_test")).items()}}
    indices = sorted(
        {int(key[5:]) for site in found.values() for key in site if key[5:].isdigit() and key[:5] == "dice_"}
    )
    names = mapping(run.config.get("image")).get("names")
    names = names if isinstance(names, list) else []
    rows = [
        {
            "name": name,
            "classes": [
                {
                    "dice": number(site.get(f"dice_{index}")),
                    "pooled": number(site.get(f"dice_pooled_{index}")),
                    "n": number(site.get(f"n_positive_{index}")),
                }
                for index in indices
            ],
        }
        for name, site in found.items()
    ]
    return {"classes": [_class_name(names, index) for index in indices], "rows": rows}


def charts(rows: list[dict[str, Any]]) -> dict[str, Markup | None]:
    """Intervals and distributions of Dice over the test pictures, a row for each site, the worst at the top."""
    if all(row["dice"]["value"] is None for row in rows):
        return {"intervals": None, "bins": None}
    # those without a figure come last
    tested = sorted(rows, key=lambda row: 2.0 if row["dice"]["value"] is None else row["dice"]["value"])
    measured = [
        strips.Measured(row["name"], row["dice"]["value"], _ends(row["dice"]), row["dice_pooled"]["value"])
        for row in tested
    ]
    told = "; ".join(f"{row.name} {show_figure(row.value)}" for row in measured)
    shares = [(row["name"], row["bins"]) for row in tested]
    described = "; ".join(
        f"{name}: " + ", ".join(f"{n} from {start:g} to {end:g}" for start, end, n in bins)
        for name, bins in shares
        if bins
    )
    known = any(bins for _, bins in shares)
    return {
        "intervals": strips.interval_chart(f"Test Dice by site, worst first: {told}", measured, show_figure),
        "bins": strips.share_chart(f"Pictures by their Dice. {described}", shares) if known else None,
    }


def pseudo_labels(run: Run) -> Markup | None:
    """What the two paths say of pictures whose masks are known but were not trained on."""
    found = mapping(run.summary.get("pseudo"))
    bars = [
        plots.Bar("Text mask", number(found.get("text_dice_mean")), "accent"),
        plots.Bar("Teacher", number(found.get("teacher_dice_mean"))),
    ]
    if all(bar.value is None for bar in bars):
        return None
    described = ", ".join(f"{bar.name} {show_figure(bar.value)}" for bar in bars)
    return plots.bar_chart(f"Dice of the pseudo-labels: {described}", bars, 1.0, show_figure)


def _measured(site: Mapping[str, Any], figure: str) -> dict[str, float | None]:
    ends = mapping(site.get("intervals")).get(figure)
    low, high = map(number, ends) if isinstance(ends, list) and len(ends) == 2 else (None, None)
    return {"value": number(site.get(figure)), "low": low, "high": high}


def _ends(measured: Mapping[str, float | None]) -> tuple[float, float] | None:
    low, high = measured["low"], measured["high"]
    return None if low is None or high is None else (low, high)


def _bins(raw: Any) -> list[tuple[float, float, int]]:
    """(from, to, pictures) in [0, 1], in order."""
    known = {int(start): number(n) for start, n in mapping(raw).items() if str(start).isdigit() and int(start) < 100}
    starts = sorted(start for start, n in known.items() if n is not None and n >= 0)
    return [(start / 100, end / 100, int(known[start])) for start, end in pairwise([*starts, 100])]


def _class_name(names: list, index: int) -> str:
    """Of a foreground class, counted from 1."""
    return str(names[index - 1]) if index <= len(names) else f"class {index}"
