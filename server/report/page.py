"""report.html: one self-contained page about a run, for a researcher and for a data protection officer.

Made from the files of the run alone, so it can be made again at any time, also while the run is still going.
Names and figures come from sites and are not trusted: the template escapes them, what is not a finite number
is shown as missing, and the page forbids itself scripts and every request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dusss_core.files import write_text
from feddusss.page import template
from server.report import comparisons, costs, course, results
from server.report.figures import lead_over, mean, method_name, methods, worst_site
from server.report.figures import results as site_results
from server.report.quantities import show_bytes, show_count, show_figure, show_points, show_seconds
from server.runs.lines import mapping, number
from server.runs.runfiles import Run, read_run

PERSONAL = {"ditto": "Ditto", "fedrep": "FedRep", "apfl": "APFL", "finetune": "fine-tuned"}
"""What the ways to a student of the site's own are called on the page."""


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
    rows = results.site_rows(run)
    outside = results.outside_rows(run)
    return {
        "study": str(run.summary.get("study") or run.config.get("study") or run.folder.name),
        "seed": run.config.get("seed"),
        "finished": bool(run.summary),
        "progress": course.progress(run),
        "headline": _headline(run),
        "sentence": _sentence(run),
        "verdict": str(run.summary.get("verdict") or ""),
        "worth": [str(mapping(one).get("told", "")) for one in mapping(run.summary.get("text_worth")).values()],
        "sites": rows,
        "charts": results.charts(rows),
        "classes": results.class_table(run),
        "told": any(row["text_dice"] is not None for row in rows),
        "personal": bool(run.summary.get("personal")),
        "outside": outside,
        "outside_charts": results.charts(outside),
        "absent": course.absences(run),
        "methods": [method_name(method) for method in methods(run)],
        "comparisons": comparisons.charts(run),
        "differences": comparisons.differences(run),
        "not_compared": comparisons.not_compared(run),
        "across": comparisons.across(run),
        "pseudo": results.pseudo_labels(run),
        "curves": [course.phase_curves(run, phase) for phase in run.phases],
        "traffic": costs.traffic(run),
        "time": costs.time(run),
        "privacy": costs.privacy(run),
        "shared": costs.shared(run),
        "config": run.config_text,
    }


def _headline(run: Run) -> list[dict[str, str]]:
    overall, text_mask = mapping(run.summary.get("global")), mapping(run.summary.get("text_mask"))
    hd95 = number(overall.get("hd95_mean"))
    if hd95 is None:
        hd95 = mean(number(site.get("hd95")) for site in site_results(run).values())
    tiles = [
        ("Dice per picture", show_figure(number(overall.get("dice_mean"))), "mean over sites"),
        ("Dice, pooled", show_figure(number(overall.get("dice_pooled_mean"))), "all pixels of a site together"),
        ("Dice, worst site", show_figure(number(overall.get("dice_worst"))), worst_site(run)),
        (
            "Dice, weighted",
            show_figure(number(overall.get("dice_weighted"))),
            "by test pictures, as far as a site may count",
        ),
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
    kind = PERSONAL.get(str(found.get("kind")), str(found.get("kind")))
    worst = worst_site(run, "personal_dice")
    return [
        ("Dice, own students, mean", show_figure(number(found.get("dice_mean"))), kind),
        ("Dice, own students, worst site", show_figure(number(found.get("dice_worst"))), worst),
    ]


def _sentence(run: Run) -> str:
    """The result in one or two sentences, for someone who reads nothing else."""
    overall, count = mapping(run.summary.get("global")), len(course.takers(run))
    dice = number(overall.get("dice_mean"))
    if dice is None:
        return ""
    who = "One hospital trained a model" if count == 1 else f"{count} hospitals trained one model together"
    against = {"local": "each hospital training alone", "centralized": "training on the pooled data"}
    distances = []
    for method, description in against.items():
        if (lead := lead_over(run, method, None)) is not None:
            side = "above" if lead >= 0 else "below"
            size = f"{abs(lead) * 100:.1f} points {side}" if round(abs(lead) * 100, 1) else "as much as"
            distances.append(f"{size} {description}")
    behind = {
        name: lead
        for name in methods(run)[1:]
        if name not in against and (lead := lead_over(run, name, None)) is not None and lead < 0
    }
    if behind:
        best = min(behind, key=behind.__getitem__)
        distances.append(f"{-behind[best] * 100:.1f} points below {method_name(best)}")
    whose = "the shared student's" if run.summary.get("personal") else "its"
    result = f"On test pictures that it never saw, {whose} mean Dice is {show_figure(dice)}"
    return f"{who}. {': '.join([result, ' and '.join(distances)] if distances else [result])}."


def _template():
    shown = {
        "figure": show_figure,
        "points": show_points,
        "count": show_count,
        "bytes": show_bytes,
        "seconds": show_seconds,
    }
    return template(Path(__file__).parent / "templates", "report.html.j2", shown)
