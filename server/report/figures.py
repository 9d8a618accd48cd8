"""What several parts of the page read from a run: results, methods, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dusss_core.phases import Phase
from server.runs.lines import ALL_SITES, mapping, number
from server.runs.runfiles import Run

METHODS = {
    "federated": "Federated",
    "local": "Each site alone",
    "centralized": "Data pooled",
    "mean_teacher": "Fed. Mean Teacher",
    "supervised": "Fed. supervised",
}
"""What the methods are called on the page; a method that is not listed keeps its own name."""


def results(run: Run) -> dict[str, Mapping[str, Any]]:
    """Figures of the final student on the test pictures of each site that trained, by name."""
    return {name: mapping(site) for name, site in sorted(mapping(run.summary.get("sites")).items())}


def methods(run: Run) -> list[str]:
    """The federated study, then what it was compared with, as far as that could run."""
    found = mapping(run.summary.get("compare"))
    found = {method: result for method, result in found.items() if "reason" not in mapping(result)}
    known = [method for method in METHODS if method in found]
    return ["federated", *known, *sorted(set(found) - set(METHODS))]


def method_name(method: str) -> str:
    """What a method is called on the page."""
    return METHODS.get(method, method)


def dice_of(run: Run, method: str, site: str | None) -> float | None:
    """Test Dice of `method` at `site`, mean over pictures; mean over the sites that trained where `site` is None."""
    if method == "federated":
        if site is None:
            return number(mapping(run.summary.get("global")).get("dice_mean"))
        tested = {**mapping(run.summary.get("external_test")), **results(run)}
        return number(mapping(tested.get(site)).get("dice"))
    compared = mapping(mapping(run.summary.get("compare")).get(method))
    if site is None:
        return number(compared.get("dice_mean"))
    value = mapping(compared.get("sites")).get(site)
    return number(value.get("dice") if isinstance(value, Mapping) else value)


def lead_over(run: Run, method: str, site: str | None) -> float | None:
    """How far the federated student is above `method` at `site`, in Dice; where `site` is None in the mean over the
    sites that have a figure of both: one that is missing says nothing of either."""
    places = results(run) if site is None else [site]
    pairs = [(dice_of(run, "federated", place), dice_of(run, method, place)) for place in places]
    return mean(own - other for own, other in pairs if own is not None and other is not None)


def worst_site(run: Run, figure: str = "dice") -> str:
    """The site with the lowest figure; "" where none has it."""
    scored = {name: value for name, site in results(run).items() if (value := number(site.get(figure))) is not None}
    return min(scored, key=scored.__getitem__, default="")


def title(phase: Any) -> str:
    """What a phase is called on the page; a file of another release may name one that is not known here."""
    return Phase(phase).title if phase in list(Phase) else str(phase)


def trained(run: Run) -> set[tuple[str, int]]:
    """(phase, round) of the rounds that trained. The last model of a phase is validated in a round of its own, whose
    whole is not timed. A private site tells no figure of its training, and a refusal reads the same in either kind."""
    return {(line["phase"], line["round"]) for line in run.rounds if _tells_of_training(line)}


def _tells_of_training(line: Mapping[str, Any]) -> bool:
    known = "seconds" if line["site"] == ALL_SITES else "num-examples"
    return bool(mapping(line.get("train"))) or number(line.get(known)) is not None


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
