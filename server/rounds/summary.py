"""summary.json: the final figures of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dusss_core.files import with_prefix
from dusss_core.phases import Phase
from server.rounds.selection import weighted_mean
from server.rounds.shares import capped
from server.rounds.worth import of_final_round
from server.runs.checkpoints import Checkpoint, describe
from server.study.config import StudyConfig

if TYPE_CHECKING:
    from server.rounds.replies import Reply
    from server.rounds.roster import Site


_FIGURES = ("dice", "iou", "hd95")
"""Of a student on test pictures."""
_FIGURE = re.compile(r"(text_)?(iou|hd95|dice(_pooled)?(_[1-9]\d?)?)")
_COUNT = re.compile(r"(text_)?n_positive(_[1-9]\d?)?")
_BINS = ("0", "20", "40", "60", "80")


def make_summary(
    study: StudyConfig,
    config_digest: str,
    run_key: str,
    sites: Sequence[Site],
    metrics: Mapping[str, Mapping[str, float]],
    finals: Mapping[str, Checkpoint],
    *,
    evaluate_seconds: float,
    before: Mapping[str, Any],
    members: Sequence[Mapping[str, Any]] = (),
    lines: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What summary.json holds.

    Args:
        run_key: names the run; the sites keep what is their own by it.
        metrics: figures of the final student and of the text-guided masks, by site.
        finals: the final model of each phase.
        before: an earlier summary, whose comparisons are kept.
        members: which sites could take part since when; told where that has changed.
        lines: of metrics.jsonl, for what was judged of text-guided masks.
    """
    trainers = [site for site in sites if site.role == "train"]
    scores = {site.name: _scores(site, metrics.get(site.name, {})) for site in sites}
    inside = {site.name: scores[site.name] for site in trainers}
    outside = {name: score for name, score in scores.items() if name not in inside}
    seconds = {phase: final.totals.get("seconds", 0.0) for phase, final in finals.items()}
    judges = study.method.text_mask and study.method.judge_text and Phase.SEGMENT in finals
    worth = of_final_round(lines, finals[Phase.SEGMENT].round) if judges else {}
    return {
        "study": study.study,
        "seed": study.seed,
        **({"members": [dict(entry) for entry in members]} if len(members) > 1 else {}),
        "sites": inside,
        **({"external_test": outside} if outside else {}),
        "global": overall_of(study, inside),
        **({"personal": _personal(study, run_key, inside)} if study.personal.kind != "none" else {}),
        "text_mask": {
            "dice_mean": _mean_of(metrics, inside, "text_mask.dice"),
            **{site: metrics[site]["text_mask.dice"] for site in inside if "text_mask.dice" in metrics.get(site, {})},
        },
        **({"text_worth": worth} if worth else {}),
        "pseudo": {
            "text_dice_mean": _mean_of(metrics, inside, "pseudo.text_dice"),
            "teacher_dice_mean": _mean_of(metrics, inside, "pseudo.teacher_dice"),
        },
        "compare": dict(before.get("compare", {})),
        "rounds": {
            phase: {"trained": final.last_round, "final": final.round, "ended": final.ended}
            for phase, final in finals.items()
        },
        "bytes_up_per_round": _per_round(finals, "bytes_up"),
        "bytes_down_per_round": _per_round(finals, "bytes_down"),
        "seconds": {
            **seconds,
            "evaluate": evaluate_seconds,
            "total": sum(seconds.values()) + evaluate_seconds,
            "training_at_sites": sum(final.totals.get("site_seconds", 0.0) for final in finals.values()),
        },
        "shared": {phase: describe(final.model) for phase, final in finals.items()},
        "config_digest": config_digest,
    }


def overall_of(study: StudyConfig, sites: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """As `overall`, each site with the weight that the study lets it have: its test pictures, but no more than its
    declared size, and no more than the largest share."""
    federation = study.federation
    told = {name: score["n_test"] or 0 for name, score in sites.items() if score.get("dice") is not None}
    sizes = federation.sizes or {}
    held = [min(pictures, sizes.get(name, pictures)) for name, pictures in told.items()]
    return overall(sites, dict(zip(told, capped(held, federation.max_share), strict=True)))


def overall(
    sites: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float] | None = None
) -> dict[str, float | None]:
    """The figures over sites, of those that have a test split: weighted by test pictures, plain mean, worst.

    Args:
        weights: of the sites in the weighted mean; None: their test pictures.
    """
    tested = {name: site for name, site in sites.items() if site.get("dice") is not None}
    weights = weights or {name: site["n_test"] for name, site in tested.items()}
    dice = [site["dice"] for site in tested.values()]
    iou = [site["iou"] for site in tested.values() if site.get("iou") is not None]
    hd95 = [site["hd95"] for site in tested.values() if site.get("hd95") is not None]
    pooled = [site["dice_pooled"] for site in tested.values() if site.get("dice_pooled") is not None]
    told = [site["text_dice"] for site in tested.values() if site.get("text_dice") is not None]
    return {
        "dice_weighted": weighted_mean([(weights[name], site["dice"]) for name, site in tested.items()]),
        "dice_mean": fmean(dice) if dice else None,
        "dice_worst": min(dice, default=None),
        **({"dice_pooled_mean": fmean(pooled), "dice_pooled_worst": min(pooled)} if pooled else {}),
        "iou_mean": fmean(iou) if iou else None,
        "hd95_mean": fmean(hd95) if hd95 else None,
        **({"text_dice_mean": fmean(told), "text_dice_worst": min(told)} if told else {}),
    }


def _personal(study: StudyConfig, run_key: str, sites: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The sites' own students: over sites as `overall`, and where each lies."""
    own = {
        name: {"n_test": site["n_test"], **{figure: site.get(f"personal_{figure}") for figure in _FIGURES}}
        for name, site in sites.items()
    }
    file = "" if study.personal.kind == "fedrep" else ".personal"  # of FedRep a site has one student
    return {
        "kind": study.personal.kind,
        **overall_of(study, own),
        "val_dice_mean": _mean(site.get("personal_val_dice") for site in sites.values()),
        "files": {
            name: f"students/{study.study}-{run_key[:8]}{file}.safetensors"
            for name, site in sites.items()
            if site.get("personal_round") is not None
        },
    }


def evaluation_figures(
    replies: Mapping[str, Reply], summary: Mapping[str, Any]
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """What a reporter is told of an evaluation: metrics by site, and the figures over all."""
    overall_figures = {name: value for name, value in summary["global"].items() if value is not None}
    return {name: reply.metrics for name, reply in replies.items() if reply.accepted}, overall_figures


def without_own_layers(study: StudyConfig, replies: Mapping[str, Reply]) -> str | None:
    """Which sites have no test figures since they have no layers to test with, in words; None: each has its own."""
    tested = {name: any(key.startswith("test.") for key in reply.metrics) for name, reply in replies.items()}
    missing = sorted(name for name, reply in replies.items() if reply.accepted and not tested[name])
    if not study.local_norm or not missing:
        return None
    return (
        f"no test figures of {', '.join(missing)}: with local_norm a model has the site's own normalisation layers, "
        "and a site that takes no part in training has none; means are over the other sites"
    )


def figures_of_test(scores: Mapping[str, float]) -> dict[str, Any]:
    """Figures of a student on one site's test pictures as summary.json has them.

    Args:
        scores: as a site sends them, without "test.".

    Returns:
        "dice", "iou", "hd95", None where there is none, and those of the following that are known: of several classes
        "dice_1" and so on; "dice_pooled", with "dice_pooled_1" and so on; "n_positive", with "n_positive_1" and so on;
        "intervals": {"dice": [low, high], ...}; "dice_bins": {"0": pictures, ...}; of a student that is given sentences
        the same names with "text_" before them.
    """
    found: dict[str, Any] = dict.fromkeys(_FIGURES)
    found |= {name: scores[name] for name in sorted(scores) if _FIGURE.fullmatch(name)}
    found |= {name: int(scores[name]) for name in sorted(scores) if _COUNT.fullmatch(name)}
    intervals = {}
    for told in ("", "text_"):
        for name in (f"{told}{figure}" for figure in (*_FIGURES, "dice_pooled")):
            ends = [scores.get(f"{name}_{end}") for end in ("low", "high")]
            intervals |= {} if None in ends else {name: ends}
        bins = {start: int(scores[name]) for start in _BINS if (name := f"{told}dice_from_{start}") in scores}
        found |= {f"{told}dice_bins": bins} if bins else {}
    return found | ({"intervals": intervals} if intervals else {})


def _scores(site: Site, metrics: Mapping[str, float]) -> dict[str, Any]:
    figures = figures_of_test(with_prefix(metrics, "test."))
    if "personal.round" in metrics:
        figures |= {f"personal_{name}": metrics.get(f"personal.{name}") for name in (*_FIGURES, "val_dice")}
        figures["personal_round"] = int(metrics["personal.round"])
    if "n_records" in site.counts:  # differential privacy: no true count leaves the site
        return {
            "n_records": site.counts["n_records"],
            "n_labeled": None,
            "n_unlabeled": None,
            # a site that gave its budget up while the run went on tells of its test pictures beside their figures
            "n_test": int(metrics["test.n"]) if "test.n" in metrics else None,
            **figures,
        }
    return {
        "n_labeled": site.counts.get("n_labelled", 0),
        "n_unlabeled": site.counts.get("n_unlabelled", 0),
        "n_test": int(metrics.get("test.n", site.counts.get("n_test", 0))),
        **figures,
    }


def _mean_of(metrics: Mapping[str, Mapping[str, float]], sites: Mapping[str, Any], name: str) -> float | None:
    return _mean(metrics[site].get(name) for site in sites if site in metrics)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _per_round(finals: Mapping[str, Checkpoint], key: str) -> dict[str, int]:
    """Bytes of all sites together, mean over the rounds of each phase."""
    return {
        phase: round(final.totals[key] / final.totals["rounds"])
        for phase, final in finals.items()
        if final.totals.get("rounds")
    }
