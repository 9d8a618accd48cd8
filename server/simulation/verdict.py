"""What a comparison comes to, in a few sentences for a person."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from dusss_core.config import MethodConfig
from dusss_core.phases import Phase
from dusss_core.sampling import steps_per_round
from server.study.config import StudyConfig

_SPREAD = 0.15
"""Standard deviation between patients of the difference of two methods' Dice, about: what single pictures score stays
at the sites, so that only numbers are known here. Several pictures of one patient tell little more than one of them."""
_MORE_STEPS = 1.5
"""From so many times the steps on they are told."""
_CALLED = {
    "local": "each site alone",
    "centralized": "the pooled data",
}
_ALSO_FEDERATED = {
    "supervised": "supervised training",
    "mean_teacher": "Mean Teacher",
    "clip": "CLIP-style pretraining",
    "paper": "the paper's settings",
}
_PARTS = {"text_mask": "text masks", "teacher": "a teacher"}
_PARTS_OF_STEP_1 = {"sss": "SSS", "dcl": "DCL", "ltg": "LTG"}


def verdict(study: StudyConfig, summary: Mapping[str, Any], patients: Mapping[str, int] = {}) -> str | None:
    """Which method is best at which site, and whether the study's own is worth it, as far as this many patients tell.

    Differences are called noise up to two standard errors, for the patients that the test pictures are of. One seed
    says less than that: training anew moves Dice by some points too.

    Args:
        summary: of the study, with its "compare".
        patients: by site, of how many patients its test pictures are; where it is not named, each is another's.

    Returns:
        Two to four sentences; None where nothing was compared.
    """
    ours = our_name(study)
    dice = {ours: _by_site(summary)}
    dice |= {_called(name, ours): _by_site(found) for name, found in summary.get("compare", {}).items()}
    dice = {name: of_site for name, of_site in dice.items() if of_site}
    sites = sorted(set.intersection(*map(set, dice.values()))) if dice else []
    if ours not in dice or len(dice) < 2 or not sites:
        return None
    pictures = {site: summary["sites"][site].get("n_test") or 1 for site in sites}
    counts = {site: min(patients.get(site, number), number) for site, number in pictures.items()}
    tested = f"{sum(pictures.values())} test pictures"
    if (of := sum(counts.values())) < sum(pictures.values()):
        tested += f" of {of} patient{'s' * (of != 1)}"
    where = _where(sites, dice[ours])
    told = [_best_by_site(dice, sites, counts, ours), _worth_it(dice, counts, ours, where, tested)]
    if _CALLED["centralized"] in dice:
        told += _of_steps(study, [_trained_on(site) for site in summary["sites"].values()])
    return " ".join(told)


def our_name(study: StudyConfig) -> str:
    """What the study's own method is called."""
    method = study.method
    if method.objective != "dusss":
        return f"federated {method.objective}"
    called = {"dusss": "DuSSS", **_ALSO_FEDERATED}[method.preset]
    if method.text_mask and method.pretraining != "dusss":
        called = "DuSSS" if method.preset == "clip" else called
        called += f" with {method.pretraining.upper()} pretraining"
    return f"federated {called}{_switched(method)}"


def _switched(method: MethodConfig) -> str:
    """Where the method has other parts than what its name promises: which."""
    named = MethodConfig(preset=method.preset, pretraining=method.pretraining)
    parts = _PARTS | (_PARTS_OF_STEP_1 if method.text_mask and named.text_mask else {})
    changed = {part: getattr(method, key) for key, part in parts.items() if getattr(method, key) != getattr(named, key)}
    told = [f"{'with' if on else 'without'} {part}" for part, on in changed.items()]
    return f" {' and '.join(told)}" if told else ""


def _called(name: str, ours: str) -> str:
    """What a method of `--compare` is called; never as the study's own, whose figures are others."""
    called = _CALLED.get(name) or f"federated {_ALSO_FEDERATED.get(name, name)}"
    return called if called != ours else f"{called} by --compare"


def _where(sites: list[str], own: Mapping[str, float]) -> str:
    """The sites that a mean is over: a method that a site could not train has no figure of it."""
    return "sites" if len(sites) == len(own) else f"the {len(sites)} of {len(own)} sites where each method has a figure"


def noise(n: int) -> float:
    """What a difference of mean Dice over the test pictures of `n` patients must exceed to be more than chance."""
    return 2 * _SPREAD / math.sqrt(max(n, 1))


def _best_by_site(
    dice: Mapping[str, Mapping[str, float]], sites: list[str], counts: Mapping[str, int], ours: str
) -> str:
    """The best at each site beside what it must be told from: the study's own method, or the strongest other one."""
    parts = []
    for site in sites:
        here = {name: of_site[site] for name, of_site in dice.items()}
        best = max(here, key=here.__getitem__)
        next_ = ours if best != ours else max(here.keys() - {ours}, key=lambda name: (here[name], name))
        close = ", within noise" if here[best] - here[next_] <= noise(counts[site]) else ""
        parts.append(f"{site} {best} ({here[best]:.3f}; {next_} {here[next_]:.3f}{close})")
    return f"Best at {', at '.join(parts)}."


def _worth_it(
    dice: Mapping[str, Mapping[str, float]], counts: Mapping[str, int], ours: str, where: str, tested: str
) -> str:
    mean = {name: fmean(of_site[site] for site in counts) for name, of_site in dice.items()}
    # of the mean over sites, each of which counts the same
    enough = 2 * _SPREAD * math.sqrt(sum(1 / max(count, 1) for count in counts.values())) / len(counts)
    rivals = {name: value for name, value in mean.items() if name not in (ours, _CALLED["centralized"])}
    if not rivals:
        return (
            f"In the mean over {where} {ours} has {mean[ours]:.3f}, the pooled data {mean[_CALLED['centralized']]:.3f}."
        )
    best = max(rivals, key=rivals.__getitem__)
    gain = mean[ours] - rivals[best]
    size = f"{abs(gain) * 100:.1f} points {'above' if gain >= 0 else 'below'} {best} ({rivals[best]:.3f})"
    if round(abs(gain) * 100, 1) == 0:
        size = f"as much as {best} ({rivals[best]:.3f})"
    told = f"In the mean over {where} {ours} has {mean[ours]:.3f}, {size}: "
    limit = f"the {enough * 100:.1f} that {tested} can tell apart"
    if abs(gain) <= enough:
        return f"{told}within noise, less than {limit}, so it is not shown to be worth more here."
    return f"{told}more than {limit}, so it is {'worth it' if gain > 0 else 'not worth it'} here (one seed)."


def _of_steps(study: StudyConfig, records: Sequence[int]) -> list[str]:
    """That the pooled data's model made more steps one after another, where it did: part of what it is ahead by is
    those, and not the sites' being apart."""
    trained = [count for count in records if count]
    ahead = {}
    for phase in study.phases() if trained else ():
        settings = phase.settings(study)
        of_sites = fmean(steps_per_round(settings, count) for count in trained)
        ahead[f"{phase}.epochs"] = steps_per_round(settings, sum(trained)) / of_sites, settings.epochs
    ratio, _ = ahead.get(f"{Phase.SEGMENT}.epochs", (1.0, 1))
    if ratio < _MORE_STEPS:
        return []
    with_ = ", ".join(f"{key}: {round(more * epochs)}" for key, (more, epochs) in ahead.items())
    return [f"The pooled data's model made {ratio:.1f} times as many steps one after another; as many with {with_}."]


def _trained_on(site: Mapping[str, Any]) -> int:
    return (site.get("n_labeled") or 0) + (site.get("n_unlabeled") or 0)


def _by_site(found: Mapping[str, Any]) -> dict[str, float]:
    """Dice of what is deployed at each site: of its own student, where it has one."""
    deployed = {
        name: site.get("dice") if site.get("personal_dice") is None else site["personal_dice"]
        for name, site in found.get("sites", {}).items()
    }
    return {name: dice for name, dice in deployed.items() if dice is not None}
