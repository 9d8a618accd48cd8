"""report.html: one self-contained page about a run, for a researcher and for a data protection officer.

Made from the files of the run alone, so it can be made again at any time, also while the run is still going.
Names and figures come from sites and are not trusted: the template escapes them, what is not a finite number
is shown as missing, and the page forbids itself scripts and every request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dusss_core.files import write_text
from dusss_core.phases import Phase
from feddusss.page import template
from server.report import plots
from server.report.quantities import show_bytes, show_count, show_figure, show_points, show_seconds, show_tick
from server.runs.runfiles import Run, mapping, number, read_run
from server.runs.runfolder import ALL_SITES

if TYPE_CHECKING:
    from markupsafe import Markup

METHODS = {
    "federated": "Federated",
    "local": "Each site alone",
    "centralized": "Data pooled",
    "mean_teacher": "Fed. Mean Teacher",
    "supervised": "Fed. supervised",
}
"""What the methods are called on the page; a method that is not listed keeps its own name."""

PERSONAL = {"ditto": "Ditto", "fedrep": "FedRep", "apfl": "APFL", "finetune": "fine-tuned"}
"""What the ways to a student of the site's own are called on the page."""

SCALARS = {
    "train.loss": "Training loss",
    "val.loss": "Validation loss",
    "val.dice": "Validation Dice",
    "val.text_dice": "Validation Dice with the sentence",
    "val.personal_dice": "Validation Dice, sites' own students",
    "pseudo.text_dice": "Pseudo-labels: text-guided mask",
    "pseudo.teacher_dice": "Pseudo-labels: teacher",
    "pseudo.merged_dice": "Pseudo-labels: merged target",
}
"""The figures that are drawn large, in this order; all others go into a folded section."""

_PARTS_OF_TIME = {
    Phase.PRETRAIN: "Pretraining",
    Phase.SEGMENT: "Segmentation",
    "evaluate": "Evaluation",
    "total": "Total",
    "training_at_sites": "of it, the sites' own work in rounds",
}

_OF_THE_COORDINATOR = {"phase", "round", "site", "bytes_up", "bytes_down"}
"""What the coordinator itself adds to a site's line."""

_MANY_SITES = plots.COLOURS
"""With more sites than this, only the aggregate is named in a chart."""


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html from the files of the run, and return its path.

    Raises:
        UserError: not a folder of a run, or a file of it is damaged.
    """
    run = read_run(Path(run_dir))
    path = run.folder / "report.html"
    write_text(path, _template().render(page(run)))
    return path


def page(run: Run) -> dict[str, Any]:
    """What the template shows: plain strings, numbers (None: no figure) and finished charts."""
    return {
        "study": str(run.summary.get("study") or run.config.get("study") or run.folder.name),
        "seed": run.config.get("seed"),
        "finished": bool(run.summary),
        "progress": _progress(run),
        "headline": _headline(run),
        "sentence": _sentence(run),
        "sites": _site_rows(run),
        "told": any(row["text_dice"] is not None for row in _site_rows(run)),
        "personal": bool(run.summary.get("personal")),
        "outside": _outside_rows(run),
        "not_used": _not_used(run),
        "methods": [_method_name(method) for method in _methods(run)],
        "comparisons": _comparison_charts(run),
        "not_compared": _not_compared(run),
        "pseudo": _pseudo_labels(run),
        "worth": [str(mapping(one).get("told", "")) for one in mapping(run.summary.get("text_worth")).values()],
        "verdict": str(run.summary.get("verdict") or ""),
        "curves": [_phase_curves(run, phase) for phase in run.phases],
        "traffic": _traffic(run),
        "time": _time(run),
        "shared": _shared(run),
        "config": run.config_text,
    }


def _progress(run: Run) -> str:
    if not run.rounds:
        return "no round is finished yet"
    done = []
    for phase in run.phases:
        last = max((line["round"] for line in run.rounds if line["phase"] == phase and _trained(line)), default=0)
        planned = number(mapping(run.config.get(phase)).get("rounds"))
        done.append(f"{phase} round {last}" + (f" of {planned}" if planned else ""))
    return ", ".join(done)


def _trained(line: Mapping[str, Any]) -> bool:
    """Whether a line tells of training; the last model of a phase is validated in a line of its own."""
    return bool(mapping(line.get("train"))) or line.get("accepted") is False


def _headline(run: Run) -> list[dict[str, str]]:
    overall, text_mask = mapping(run.summary.get("global")), mapping(run.summary.get("text_mask"))
    scored = {name: score for name, site in _results(run).items() if (score := number(site.get("dice"))) is not None}
    worst = min(scored, key=scored.__getitem__) if scored else None
    hd95 = number(overall.get("hd95_mean"))
    if hd95 is None:
        hd95 = _mean(number(site.get("hd95")) for site in _results(run).values())
    tiles = [
        ("Dice, mean", show_figure(number(overall.get("dice_mean"))), "every site counts the same"),
        (
            "Dice, weighted",
            show_figure(number(overall.get("dice_weighted"))),
            "every picture counts the same",
        ),
        ("Dice, worst site", show_figure(number(overall.get("dice_worst"))), worst or ""),
        ("IoU, mean", show_figure(number(overall.get("iou_mean"))), "intersection over union"),
        ("HD95, mean", show_figure(hd95, 1), "pixels, smaller is better"),
        ("Dice, text masks", show_figure(number(text_mask.get("dice_mean"))), "pseudo-labels from sentences"),
        *_personal_tiles(run),
    ]
    if (told := number(overall.get("text_dice_mean"))) is not None:
        tiles.insert(1, ("Dice with the sentence, mean", show_figure(told), "the student is given it"))
    return [{"name": name, "value": value, "note": note} for name, value, note in tiles]


def _personal_tiles(run: Run) -> list[tuple[str, str, str]]:
    """Of the students that are the sites' own, where the study has any."""
    found = mapping(run.summary.get("personal"))
    if not found:
        return []
    scored = {n: d for n, site in _results(run).items() if (d := number(site.get("personal_dice"))) is not None}
    worst = min(scored, key=scored.__getitem__) if scored else ""
    kind = PERSONAL.get(str(found.get("kind")), str(found.get("kind")))
    return [
        ("Dice, own students, mean", show_figure(number(found.get("dice_mean"))), kind),
        ("Dice, own students, worst site", show_figure(number(found.get("dice_worst"))), worst),
    ]


def _sentence(run: Run) -> str:
    """The result in one or two sentences, for someone who reads nothing else."""
    overall, count = mapping(run.summary.get("global")), len(run.sites)
    dice = number(overall.get("dice_mean"))
    if dice is None:
        return ""
    who = "One hospital trained a model" if count == 1 else f"{count} hospitals trained one model together"
    against = {"local": "each hospital training alone", "centralized": "training on the pooled data"}
    distances = []
    for method, description in against.items():
        other = number(mapping(mapping(run.summary.get("compare")).get(method)).get("dice_mean"))
        if other is not None:
            side = "above" if dice >= other else "below"
            distances.append(f"{abs(dice - other) * 100:.1f} points {side} {description}")
    result = f"On test pictures that it never saw, its mean Dice is {show_figure(dice)}"
    return f"{who}. {': '.join([result, ' and '.join(distances)] if distances else [result])}."


def _results(run: Run) -> dict[str, Mapping[str, Any]]:
    return {name: mapping(site) for name, site in sorted(mapping(run.summary.get("sites")).items())}


def _site_rows(run: Run) -> list[dict[str, Any]]:
    """A row for each site that trained, then for each that was only tested on."""
    text_mask = mapping(run.summary.get("text_mask"))
    outside = mapping(run.summary.get("external_test"))
    results = _results(run)
    rows = []
    for name in [*(name for name in run.sites if name not in outside), *sorted(outside)]:
        site = mapping(outside[name]) if name in outside else results.get(name, {})
        keys = ("n_labeled", "n_unlabeled", "n_test", "dice", "iou", "hd95", "text_dice")
        row: dict[str, Any] = {key: number(site.get(key)) for key in keys}
        local = _dice_of(run, "local", name)
        row["over_local"] = row["dice"] - local if row["dice"] is not None and local is not None else None
        row["text_mask"] = number(text_mask.get(name))
        row["personal"] = number(site.get("personal_dice"))
        rows.append({"name": name, "outside": name in outside, **row})
    return rows


def _outside_rows(run: Run) -> list[dict[str, Any]]:
    """What a simulation measured itself at private sites, whose own figures do not leave them."""
    rows = []
    for name, raw in sorted(mapping(mapping(run.summary.get("outside")).get("sites")).items()):
        site, paid = mapping(raw), mapping(mapping(raw).get("privacy"))
        figures = {key: number(site.get(key)) for key in ("n_test", "dice", "iou", "hd95")}
        rows.append({"name": name, **figures, **{key: number(paid.get(key)) for key in ("epsilon", "spent")}})
    return rows


def _not_used(run: Run) -> list[dict[str, str]]:
    """Answers that were refused, or never came: who, when, why."""
    refused = [line for line in run.rounds if line.get("accepted") is False]
    return [
        {
            "site": line["site"],
            "when": f"{line['phase']} {line['round']}",
            "reason": str(line.get("reason") or "no reason given"),
        }
        for line in refused
    ]


def _pseudo_labels(run: Run) -> Markup | None:
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


def _methods(run: Run) -> list[str]:
    found = mapping(run.summary.get("compare"))
    found = {method: result for method, result in found.items() if "reason" not in mapping(result)}
    known = [method for method in METHODS if method in found]
    return ["federated", *known, *sorted(set(found) - set(METHODS))]


def _not_compared(run: Run) -> list[dict[str, str]]:
    """Methods that could not run, and why."""
    found = {name: mapping(result) for name, result in mapping(run.summary.get("compare")).items()}
    return [
        {"method": _method_name(name), "reason": str(result["reason"])}
        for name, result in found.items()
        if "reason" in result
    ]


def _method_name(method: str) -> str:
    return METHODS.get(method, method)


def _dice_of(run: Run, method: str, site: str | None) -> float | None:
    """Test Dice of `method` at `site`; mean over sites where `site` is None."""
    if method == "federated":
        if site is None:
            return number(mapping(run.summary.get("global")).get("dice_mean"))
        return number(_results(run).get(site, {}).get("dice"))
    compared = mapping(mapping(run.summary.get("compare")).get(method))
    if site is None:
        return number(compared.get("dice_mean"))
    value = mapping(compared.get("sites")).get(site)
    return number(value.get("dice") if isinstance(value, Mapping) else value)


def _comparison_charts(run: Run) -> list[dict[str, Any]]:
    """A chart per site with a bar per method; without comparisons one chart with a bar per site."""
    if not run.summary:
        return []
    places = {"Mean over sites": None} | {site: site for site in run.sites}
    if _methods(run) == ["federated"]:
        bars = [
            plots.Bar(name, _dice_of(run, "federated", site), _bar_colour(site is None))
            for name, site in places.items()
        ]
        return [_bar_figure("Federated", bars)]
    return [
        _bar_figure(
            name,
            [
                plots.Bar(_method_name(method), _dice_of(run, method, site), _bar_colour(method == "federated"))
                for method in _methods(run)
            ],
        )
        for name, site in places.items()
    ]


def _bar_figure(title: str, bars: list[plots.Bar]) -> dict[str, Any]:
    described = ", ".join(f"{bar.name} {show_figure(bar.value)}" for bar in bars)
    return {"title": title, "svg": plots.bar_chart(f"Test Dice, {title}: {described}", bars, 1.0, show_figure)}


def _bar_colour(ours: bool) -> str:
    return "accent" if ours else "muted"


def _title(phase: Any) -> str:
    """What a phase is called on the page; a file of another release may name one that is not known here."""
    return Phase(phase).title if phase in list(Phase) else str(phase)


def _phase_curves(run: Run, phase: str) -> dict[str, Any]:
    lines = [line for line in run.rounds if line["phase"] == phase]
    found = {name for line in lines for name in _scalars(line)}
    found = {name for name in found if "." in name and not name.startswith("state.")}
    main = [name for name in SCALARS if name in found]
    ended = mapping(mapping(run.summary.get("rounds")).get(phase))
    return {
        "title": _title(phase),
        "final": number(ended.get("final")),
        "ended": str(ended.get("ended") or ""),
        "main": [_curve(run, lines, name) for name in main],
        "other": [_curve(run, lines, name) for name in sorted(found - set(main))],
    }


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one line of metrics.jsonl that a site sent, under dotted names."""
    flat = {name: raw for name, raw in line.items() if name not in _OF_THE_COORDINATOR}
    for group, values in line.items():
        flat |= {f"{group}.{name}": raw for name, raw in mapping(values).items()}
    return {name: value for name, raw in flat.items() if (value := number(raw)) is not None}


def _curve(run: Run, lines: list[dict[str, Any]], name: str) -> dict[str, Any]:
    series = []
    # A model is validated when it reaches the sites, that is in the round after the one that made it.
    shift = 1 if name.startswith("val.") else 0
    for site in [*run.sites, ALL_SITES]:
        points = [
            (line["round"] - shift, _scalars(line)[name])
            for line in lines
            if line["site"] == site and name in _scalars(line)
        ]
        if points and site == ALL_SITES:
            series.append(plots.Series("all sites", points, "all"))
        elif points:
            style = "site" if len(run.sites) <= _MANY_SITES else "muted"
            series.append(plots.Series(site, points, style, run.sites.index(site)))
    title = SCALARS.get(name, name)
    described = "; ".join(
        f"{line.name} from {show_figure(line.points[0][1])} to {show_figure(line.points[-1][1])}" for line in series
    )
    is_score = name.rpartition(".")[2].endswith(("dice", "iou"))
    chart = plots.line_chart(
        f"{title} by round: {described}", series, show_tick, (0.0, None) if is_score else (None, None)
    )
    return {"title": title, "svg": chart}


def _traffic(run: Run) -> dict[str, Any]:
    """Bytes by round and by phase, summed over sites."""
    totals: dict[tuple[str, int], list[float]] = {}
    for line in run.rounds:
        if line["site"] != ALL_SITES:
            up, down = number(line.get("bytes_up")) or 0, number(line.get("bytes_down")) or 0
            total = totals.setdefault((line["phase"], line["round"]), [0, 0])
            total[0], total[1] = total[0] + up, total[1] + down
    rounds = [(phase, round, up, down) for (phase, round), (up, down) in totals.items()]
    trained = {(line["phase"], line["round"]) for line in run.rounds if _trained(line)}
    rows = []
    for phase in run.phases:
        whole = [(up, down) for name, _, up, down in rounds if name == phase]
        training = [(up, down) for name, round, up, down in rounds if name == phase and (name, round) in trained]
        rows.append(
            {
                "phase": _title(phase),
                "rounds": len(training),
                "up": sum(up for up, _ in whole),
                "down": sum(down for _, down in whole),
                "up_per_round": _mean(up for up, _ in training),
                "down_per_round": _mean(down for _, down in training),
            }
        )
    if not any(up or down for *_, up, down in rounds):
        return {"svg": None, "rows": []}
    described = "; ".join(
        f"{row['phase']}: {show_bytes(row['up_per_round'])} up, {show_bytes(row['down_per_round'])} down"
        for row in rows
    )
    return {"svg": plots.traffic_chart(f"Bytes per round. {described}", rounds, show_bytes), "rows": rows}


def _time(run: Run) -> dict[str, Any]:
    """Where the time went: the sites' own work and the rounds, by phase; and what summary.json tells."""
    rows = []
    for phase in run.phases:
        lines = [
            line for line in run.rounds if line["phase"] == phase and (line["site"] == ALL_SITES or _trained(line))
        ]
        at_sites = sum(number(line.get("seconds")) or 0 for line in lines if line["site"] != ALL_SITES)
        whole = sum(number(line.get("seconds")) or 0 for line in lines if line["site"] == ALL_SITES)
        rows.append({"phase": _title(phase), "sites": at_sites, "rounds": whole or None})
    found = mapping(run.summary.get("seconds"))
    told = [
        (_PARTS_OF_TIME.get(name, name), value)
        for name in sorted(found, key=lambda name: list(_PARTS_OF_TIME).index(name) if name in _PARTS_OF_TIME else -1)
        if (value := number(found[name])) is not None
    ]
    return {"rows": rows, "told": told}


def _shared(run: Run) -> dict[str, Any]:
    """What left the hospitals: tensors by phase, and the names of the figures that came with them."""
    tensors = []
    for phase, raw in mapping(run.summary.get("shared")).items():
        entry = mapping(raw)
        names = entry.get("names")
        tensors.append(
            {
                "phase": _title(phase),
                "tensors": number(entry.get("tensors")),
                "bytes": number(entry.get("bytes")),
                "names": [str(name) for name in names] if isinstance(names, list) else [],
            }
        )
    figures = sorted({name for line in run.rounds if line["site"] != ALL_SITES for name in _scalars(line)})
    return {"tensors": tensors, "figures": figures}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _template():
    shown = {
        "figure": show_figure,
        "points": show_points,
        "count": show_count,
        "bytes": show_bytes,
        "seconds": show_seconds,
    }
    return template(Path(__file__).parent / "templates", "report.html.j2", shown)
