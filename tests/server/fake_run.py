"""Makes the files of a run without training anything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

SITES = {"alder": (40, 120, 30), "birch": (16, 150, 32), "cedar": (0, 90, 20)}
ROUNDS = {"pretrain": 6, "segment": 10}


def write_run(
    folder: Path, *, finished: bool = True, sites: dict[str, tuple] = SITES, until: int | None = None
) -> Path:
    """config.yaml, metrics.jsonl and (if `finished`) summary.json; `until`: the last segment round."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(
        "study: demo\nseed: 1\nimage:\n  size: 64\npretrain:\n  rounds: 6\nsegment:\n  rounds: 10\n",
        encoding="utf-8",
    )
    last = {phase: rounds + 1 for phase, rounds in ROUNDS.items()} | ({"segment": until} if until else {})
    lines = [
        line for phase in ROUNDS for round in range(1, last[phase] + 1) for line in round_lines(phase, round, sites)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary(sites)), encoding="utf-8")
    return folder


def round_lines(phase: str, round: int, sites: dict[str, tuple]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one round."""
    lines = []
    for index, site in enumerate(sites):
        wave = 0.02 * math.sin(3 * round + index)
        rise = 1 - math.exp(-round / 3)
        line: dict[str, Any] = {
            "phase": phase,
            "round": round,
            "site": site,
            "seconds": 1.5 + index,
            "bytes_up": 3_100_000,
            "bytes_down": 3_100_000,
        }
        if phase == "pretrain":
            line["train"] = {
                "loss": 4.5 - 2.2 * rise + wave,
                "cmc": 2 - rise,
                "ltg": 2.1 - rise,
                "dsss_median": 0.5,
            }
            line["val"] = {"dice": 0.7 * rise - 0.03 * index + wave}
        else:
            line["bytes_up"] = line["bytes_down"] = 1_900_000
            line["train"] = {"loss": 1.2 - 0.8 * rise + wave, "sup": 0.6 - 0.4 * rise, "semi": 0.4}
            line["val"] = {"dice": 0.74 * rise - 0.04 * index + wave}
            line["pseudo"] = {
                "teacher_dice": 0.6 * rise - 0.03 * index + wave,
                "text_dice": 0.71 - 0.02 * index,
            }
        lines.append(line)
    mean = sum(line["val"]["dice"] for line in lines) / len(lines)
    aggregate = {"phase": phase, "round": round, "site": "*", "val": {"dice": mean}}
    if round > ROUNDS[phase]:  # the last model is validated once more, and nothing is trained
        for line in lines:
            line |= {"train": {}, "pseudo": {}, "bytes_up": 0}
        return [*lines, aggregate]
    return [*lines, {**aggregate, "seconds": sum(line["seconds"] for line in lines) + 0.1}]


def summary(sites: dict[str, tuple]) -> dict[str, Any]:
    """A summary.json in which the federation is well ahead of the sites alone."""
    scores = {site: 0.75 - 0.03 * index for index, site in enumerate(sites)}
    mean = sum(scores.values()) / len(scores)
    shift = {"local": -0.09, "centralized": 0.01, "mean_teacher": -0.025, "supervised": -0.05}
    compared = {
        method: {"dice_mean": mean + by, "sites": {site: score + by for site, score in scores.items()}}
        for method, by in shift.items()
    }
    return {
        "study": "demo",
        "seed": 1,
        "sites": {
            site: {
                "n_labeled": labelled,
                "n_unlabeled": unlabelled,
                "n_test": test,
                "dice": scores[site],
                "iou": scores[site] - 0.13,
                "hd95": 6.25 + 10 * (0.75 - scores[site]),
                **behind(scores[site], test),
            }
            for site, (labelled, unlabelled, test) in sites.items()
        },
        "global": {
            "dice_weighted": mean + 0.004,
            "dice_mean": mean,
            "dice_worst": min(scores.values()),
            "dice_pooled_mean": mean + 0.06,
            "dice_pooled_worst": min(scores.values()) + 0.06,
            "iou_mean": mean - 0.13,
        },
        "text_mask": {"dice_mean": 0.709, **{site: 0.715 - 0.01 * index for index, site in enumerate(sites)}},
        "pseudo": {"text_dice_mean": 0.698, "teacher_dice_mean": 0.641},
        "rounds": {
            "pretrain": {"trained": 6, "final": 5, "ended": "all rounds done"},
            "segment": {"trained": 10, "final": 10, "ended": "all rounds done"},
        },
        "compare": compared | {"local": {**compared["local"], "across": across(scores)}},
        "bytes_up_per_round": {"pretrain": 9_300_000, "segment": 5_700_000},
        "bytes_down_per_round": {"pretrain": 9_300_000, "segment": 5_700_000},
        "seconds": {"pretrain": 47.4, "segment": 79.0, "evaluate": 3.1, "total": 131.2},
        "shared": {
            "pretrain": {"tensors": 118, "bytes": 3_100_000},
            "segment": {"tensors": 64, "bytes": 1_900_000},
        },
    }


def behind(dice: float, test: int) -> dict[str, Any]:
    """What stands behind the figures of a site with `test` pictures."""
    ends = {name: [value - 0.04, value + 0.03] for name, value in {"dice": dice, "dice_pooled": dice + 0.06}.items()}
    ends |= {"iou": [dice - 0.17, dice - 0.1], "hd95": [5.1, 8.2]}
    return {
        "dice_pooled": dice + 0.06,
        "n_positive": max(0, test - 2),
        **({"intervals": ends} if test >= 10 else {}),
        **({"dice_bins": {"0": 0, "20": 6, "60": test - 13, "80": 7}} if test >= 18 else {}),
    }


def across(scores: dict[str, float]) -> dict[str, dict[str, float]]:
    """Every site's own model is at home where it was trained, and loses a little more at each further site."""
    names = list(scores)
    return {
        model: {site: scores[site] - 0.09 - 0.01 * abs(names.index(model) - names.index(site)) for site in names}
        for model in names
    }
