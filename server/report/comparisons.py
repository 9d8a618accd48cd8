"""The comparisons part of the page: other methods on the same pictures, and every site's own model at every site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.report import plots, strips
from server.report.figures import dice_of, lead_over, mean, method_name, methods, results
from server.report.quantities import show_figure
from server.runs.lines import mapping, number
from server.runs.runfiles import Run

if TYPE_CHECKING:
    from markupsafe import Markup

_MOST_CHARTS = 8
"""With more sites than this their bars are left to the table."""


def charts(run: Run) -> list[dict[str, Any]]:
    """A chart of means with a bar per method, and of few sites one for each; without comparisons none."""
    if not run.summary or methods(run) == ["federated"]:
        return []
    everyone = [*results(run)]
    # a mean over other sites is another figure: a method may have none of a site that it could not train at
    both = [site for site in everyone if all(dice_of(run, method, site) is not None for method in methods(run))]
    told = sum(dice_of(run, "federated", site) is not None for site in everyone)
    mean_over = "Mean over sites" if len(both) == told else f"Mean over {len(both)} of {told} sites"
    places = {mean_over: both} | ({site: [site] for site in run.sites} if len(run.sites) <= _MOST_CHARTS else {})
    return [
        _bar_figure(
            name,
            [
                plots.Bar(method_name(method), mean(dice_of(run, method, site) for site in sites), colour)
                for method in methods(run)
                for colour in ["accent" if method == "federated" else "muted"]
            ],
        )
        for name, sites in places.items()
    ]


def differences(run: Run) -> list[dict[str, Any]]:
    """How far the federated student is above each comparison, for each site and for the mean; [] without any."""
    others = methods(run)[1:]
    if not others:
        return []
    rows = []
    for name, site in [*((site, site) for site in results(run)), ("Mean over sites", None)]:
        rows.append(_difference(run, name, site, others))
    return rows


def not_compared(run: Run) -> list[dict[str, str]]:
    """Methods that could not run, and why."""
    found = {name: mapping(result) for name, result in mapping(run.summary.get("compare")).items()}
    return [
        {"method": method_name(name), "reason": str(result["reason"])}
        for name, result in found.items()
        if "reason" in result
    ]


def across(run: Run) -> dict[str, Any] | None:
    """Every site's own model on every site's test, and below them the federated student; None: not known."""
    found = mapping(mapping(mapping(run.summary.get("compare")).get("local")).get("across"))
    models = {name: {site: number(dice) for site, dice in mapping(row).items()} for name, row in sorted(found.items())}
    if not models:
        return None
    sites = sorted({site for row in models.values() for site in row})
    federated = {site: dice_of(run, "federated", site) for site in sites}
    at_home = mean(row.get(name) for name, row in models.items())
    away = mean(dice for name, row in models.items() for site, dice in row.items() if site != name)
    rows = [*models.items(), ("Federated", federated)]
    described = f"Test Dice of {len(models)} sites' own models at {len(sites)} sites"
    chart, width = strips.matrix_chart(described, sites, rows, lambda value: show_figure(value, 2))
    return {"svg": chart, "width": width, "at_home": at_home, "away": away, "hundredths": len(sites) > strips.MOST_WIDE}


def _difference(run: Run, name: str, site: str | None, others: list[str]) -> dict[str, Any]:
    points = [lead_over(run, method, site) for method in others]
    return {"name": name, "mean": site is None, "dice": dice_of(run, "federated", site), "points": points}


def _bar_figure(title: str, bars: list[plots.Bar]) -> dict[str, Any]:
    described = ", ".join(f"{bar.name} {show_figure(bar.value)}" for bar in bars)
    svg: Markup = plots.bar_chart(f"Test Dice, {title}: {described}", bars, 1.0, show_figure)
    return {"title": title, "svg": svg}
