"""The table of docs/results.md in which each site stands for itself: alone, in one place, federated, with a student of
its own, left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.pages import as_head, as_row
from sites.partition import OFFICIAL_TEST

LEFT_OUT = "left_out_"
"""Beginning of the settings in which one hospital takes no part, and all its pictures are the test."""
_ALONE, _PLACE, _FEDERATED, _OWN, _OUT = "alone", "one place", "federated", "federated, own student", "left out"
_TRAINED = {"local": _ALONE, "centralized": _PLACE, "federated": _FEDERATED}

Result = Mapping[str, Any]
Dice = dict[str, dict[str, list[float]]]
"""How it was trained -> site -> test Dice x 100, one of each seed."""


def site_by_site(title: str, results: Iterable[Result]) -> str:
    """Test Dice x 100 of each site, the mean and the worst of them, over the seeds that were measured: a row for each
    way that a method was trained in. Methods stand there that were measured with each site alone, with a student of its
    own or without one of the sites; empty where there is none. Of a site that is left out the figure is that of the
    pictures that it tests on where it takes part."""
    found: dict[tuple[str, float], Dice] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    seeds: dict[tuple[str, float, str], set[int]] = defaultdict(set)
    for result in results:
        key = (result["method"], result["labels"])
        for trained, dice in _of(result).items():
            seeds[*key, trained].add(result["seed"])
            for site, value in dice.items():
                found[key][trained][site].append(100 * value)
    told = {key: ways for key, ways in sorted(found.items()) if not ways.keys() <= {_PLACE, _FEDERATED}}
    if not told:
        return ""
    sites = sorted({site for ways in told.values() for dice in ways.values() for site in dice})
    lines = [f"### {title}", "", *as_head(["", *sites, "mean", "worst"])]
    for (method, share), ways in told.items():
        for trained in (_ALONE, _PLACE, _FEDERATED, _OWN, _OUT):
            if dice := ways.get(trained):
                some = ", ".join(str(seed) for seed in sorted(seeds[method, share, trained]))
                lines.append(as_row([f"{method}, {100 * share:g} %, seed {some}: {trained}", *_row(dice, sites)]))
    return "\n".join([*lines, ""])


def _of(result: Result) -> dict[str, dict[str, float]]:
    """How it was trained -> site -> Dice."""
    if result["setting"].startswith(LEFT_OUT):
        out = result.get("left_out")
        return {_OUT: {out["site"]: out["dice"]}} if out else {}
    if (trained := _TRAINED.get(result["setting"])) is None or "sites" not in result:
        return {}
    found = {trained: _dice(result["sites"])}
    if "personal" in result:
        found[_OWN] = _dice(result["personal"]["sites"])
    return found


def _dice(sites: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Of the sites that have test pictures, the official test aside."""
    return {site: one["dice"] for site, one in sites.items() if site != OFFICIAL_TEST and one["dice"] is not None}


def _row(dice: Mapping[str, Sequence[float]], sites: Sequence[str]) -> list[str]:
    each = {site: fmean(dice[site]) for site in sites if site in dice}
    whole = [f"{fmean(each.values()):.1f}", f"{min(each.values()):.1f}"] if len(each) == len(sites) else ["", ""]
    return [*(f"{each[site]:.1f}" if site in each else "" for site in sites), *whole]
