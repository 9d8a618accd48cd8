"""A model card in Hugging Face's format: Markdown with YAML metadata at its top, readable without a network.

It tells what the student's file and the run's summary.json say, and nothing else: names of sites stand in summary.json
as the sites gave them to the coordinator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dusss_core.errors import UserError
from dusss_core.files import write_text

if TYPE_CHECKING:
    from dusss_core.student import About, Student

_LAYERS = {
    "shared": "the mean of all sites' normalisation layers",
    "site": "the normalisation layers of one site; it is made for that site's pictures",
    "fitted": "statistics fitted to pictures of whoever uses it",
    "initial": "no site's normalisation layers: those that the study starts from",
    "unfitted": "no site's normalisation layers: it must be fitted to some sixteen pictures before it is used "
    "(`python -m dusss_core fit`)",
}
_NOT_ITS_OWN = (
    "**The figures are of the students that the sites tested in the run, and not of this file: it was not measured.**"
)


def write_card(student: Student, path: Path, run: Path, licence: str) -> str:
    """Write the card of a student.

    Args:
        run: the run's folder; its summary.json gives figures, if it is of the same study.

    Raises:
        UserError: a summary.json that is not JSON; disk full.
    """
    summary, note = _summary(student, run)
    write_text(path, card(student, summary, licence))
    return f"{path}: model card{note}"


def card(student: Student, summary: Mapping[str, Any], licence: str) -> str:
    """The card's text; without figures where `summary` is empty."""
    about = student.about
    sites, measured = _sites(about, summary)
    numbers = sum(tensor.numel() for tensor in student.network.state_dict().values())
    colour = "gray" if about.image.channels == 1 else "colour"
    network = f"timm {about.network.encoder} with a decoder" if about.network.encoder else about.network.network
    lines = [
        "---",
        f"license: {json.dumps(licence)}",
        "library_name: feddusss",
        "pipeline_tag: image-segmentation",
        "tags: [medical, federated-learning, semi-supervised, image-segmentation]",
        *_metadata_of_figures(about, summary),
        "---",
        "",
        f"# Student of study {about.study}",
        "",
        f"It marks {', '.join(about.names[1:])} in {colour} pictures. It was trained in a federation: pictures stayed "
        "at the sites, and trained weights travelled.",
        "",
        "## What it is",
        "",
        "| | |",
        "|---|---|",
        f"| network | {network}, width {about.network.width}, {about.network.norm} norm, {numbers:,} numbers |",
        f"| input | {about.image.channels} channel(s), {about.image.size} x {about.image.size} pixels, {_how(about)} |",
        f"| classes | {', '.join(f'{i}: {name}' for i, name in enumerate(about.names))} |",
        f"| threshold | {_threshold(about)} |",
        *_whose(about),
        f"| normalisation layers | {_LAYERS[about.layers]} |",
        f"| learnt from | {about.objective}, round {about.round} |",
        f"| digest of the study | `{about.study_digest or 'unknown'}` |",
        f"| SHA-256 of the weights | `{about.tensors}` |",
        "",
        "## How it is used",
        "",
        "```python",
        "import dusss_core",
        "",
        'student = dusss_core.load("student.safetensors")',
        'mask, probabilities = student.predict("picture.png")',
        "```",
        "",
        "## Who trained it, and how good it is",
        "",
        *(_figures(sites, summary, measured) if sites else ["No figures of the run lay beside the file."]),
        *_classes(sites, about.names[1:]),
        "",
        "## Privacy",
        "",
        *_privacy(summary),
        "",
        "## Limits",
        "",
        "- It is a result of research and no medical device: no diagnosis may rest on it.",
        f"- {'It was tested at the sites above alone' if measured else 'This very file was not tested'}. On other "
        "scanners and patients it may fail without a sign:",
        "  `python -m dusss_core evaluate` gives figures on pictures of your own with masks.",
        _sentence(about),
        "",
        "## Licence",
        "",
        f"Of the weights: {licence}. The program is under the Apache License 2.0.",
        "",
    ]
    return "\n".join(lines)


def _sites(about: About, summary: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The sites whose figures are told, and whether these are of the file itself: of what all sites have every site's,
    of a site's own file that site's alone; a file with other layers was never measured in the run."""
    sites = {**summary.get("sites", {}), **summary.get("external_test", {})}
    if about.layers in ("shared", "site") and about.site in sites:
        site = sites[about.site]
        return {about.site: site if about.personal == "none" else _as_own(site)}, True
    return sites, about.layers == "shared"


def _whose(about: About) -> list[str]:
    return [] if about.personal == "none" else [f"| whose | one site's own ({about.personal}), beside the shared one |"]


def _as_own(site: Mapping[str, Any]) -> dict[str, Any]:
    """A site's figures, with those of the student that is its own (`personal`) in place of those of the shared one."""
    kept = {name: value for name, value in site.items() if name.startswith("n_")}
    return {**kept, **{name: site.get(f"personal_{name}") for name in ("dice", "iou", "hd95")}}


def _figures(sites: Mapping[str, Any], summary: Mapping[str, Any], measured: bool) -> list[str]:
    intervals = any(_interval(site) for site in sites.values())
    lines = [] if measured else [_NOT_ITS_OWN, ""]
    lines += [
        "Means over each site's own test pictures, at the study's picture size; HD95 in pixels."
        + (" In brackets bootstrap intervals of the mean (95 %)." if intervals else ""),
        "",
        "| site | training pictures with, without mask | test pictures | Dice | IoU | HD95 |",
        "|---|---|---|---|---|---|",
    ]
    for name, site in sorted(sites.items()):
        given = [_number(site.get(key), 0) for key in ("n_labeled", "n_unlabeled")]
        pictures = f"{site['n_records']} declared" if "n_records" in site else ", ".join(given)
        dice = _number(site.get("dice"), 3) + _interval(site)
        figures = " | ".join([dice, _number(site.get("iou"), 3), _number(site.get("hd95"), 1)])
        lines.append(f"| {_plain(name)} | {pictures} | {_number(site.get('n_test'), 0)} | {figures} |")
    if len(sites) == 1:
        return lines
    overall = summary.get("global", {})
    mean, worst = (_number(overall.get(f"dice_{kind}"), 3) for kind in ("mean", "worst"))
    lines += ["", f"Mean of the sites: Dice {mean}, worst {worst}."]
    return lines


def _classes(sites: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Of several classes each one's Dice, over the test pictures where it is in the mask or in the prediction."""
    keys = {f"dice_{index}": name for index, name in enumerate(names, start=1)}
    known = {key: name for key, name in keys.items() if any(site.get(key) is not None for site in sites.values())}
    if len(names) < 2 or not known:
        return []
    lines = ["", "Dice of each class, over the pictures where it is or was found:", ""]
    lines += [f"| site | {' | '.join(map(_plain, known.values()))} |", f"|---{'|---' * len(known)}|"]
    for name, site in sorted(sites.items()):
        lines.append(f"| {_plain(name)} | {' | '.join(_number(site.get(key), 3) for key in known)} |")
    return lines


def _interval(site: Mapping[str, Any]) -> str:
    """The bootstrap interval of a site's mean Dice, where its summary has one."""
    found = site.get("dice_interval")
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(end, int | float) for end in found):
        return ""
    return f" [{found[0]:.3f}, {found[1]:.3f}]"


def _privacy(summary: Mapping[str, Any]) -> list[str]:
    private = [name for name, site in summary.get("sites", {}).items() if "n_records" in site]
    if not summary:
        return ["Nothing is known here of the sites' privacy settings."]
    if not private:
        return ["No site trained with differential privacy."]
    lines = [f"Trained with differential privacy: {', '.join(map(_plain, sorted(private)))}."]
    for name, site in sorted(summary.get("outside", {}).get("sites", {}).items()):
        spent = site.get("privacy", {})
        lines.append(
            f"{_plain(name)}: epsilon {_number(spent.get('spent'), 2)} of {_number(spent.get('epsilon'), 2)} spent, "
            f"delta {spent.get('delta')}."
        )
    return lines


def _metadata_of_figures(about: About, summary: Mapping[str, Any]) -> list[str]:
    dice = summary.get("global", {}).get("dice_mean")
    # a program that reads it knows no other file than this one
    if dice is None or about.layers != "shared" or about.site is not None:
        return []
    tested = {**summary.get("sites", {}), **summary.get("external_test", {})}
    each = {name: site["dice"] for name, site in sorted(tested.items()) if site.get("dice") is not None}
    return [
        "model-index:",
        f"- name: {json.dumps(about.study)}",
        "  results:",
        "  - task: {type: image-segmentation}",
        '    dataset: {type: private, name: "the sites\' own test pictures"}',
        f'    metrics: [{{type: dice, name: "Dice, mean over pictures, mean over sites", value: {dice:.4f}}}]',
        *(
            line
            for name, value in each.items()
            for line in (
                "  - task: {type: image-segmentation}",
                f'    dataset: {{type: private, name: "test pictures of {_plain(name)}"}}',
                f'    metrics: [{{type: dice, name: "Dice, mean over pictures", value: {value:.4f}}}]',
            )
        ),
    ]


def _summary(student: Student, run: Path) -> tuple[dict[str, Any], str]:
    path = run / "summary.json"
    if not path.is_file() and run.name == "students":  # of a simulated site, in the run's own folder
        path = run.parent / "summary.json"
    if not path.is_file():
        return {}, ", without figures: no summary.json beside the file (name the run's folder with --run)"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: not JSON", "write it again with: python -m server evaluate RUN") from None
    if summary.get("config_digest") != student.about.study_digest:
        return {}, f", without figures: {path} is of another study"
    return summary, ""


def _how(about) -> str:
    return "the whole picture scaled" if about.image.mode == "resize" else "large pictures in overlapping windows"


def _sentence(about) -> str:
    if about.hears:
        return "- It can be given a sentence beside the picture, and knows no history of the patient."
    alone = "- Picture in, mask out: it knows no sentence and no history of the patient."
    if about.objective != "dusss":
        return alone
    return (
        f"{alone} With the study's "
        "vision-language model (NAME.vlm.safetensors) `predict --text` adds what a sentence says."
    )


def _threshold(about) -> str:
    return f"{about.threshold:g}" if about.image.classes == 1 else "the most probable class"


def _number(value: Any, digits: int) -> str:
    return "not known" if value is None else f"{value:.{digits}f}"


def _plain(name: str) -> str:
    """A site's name, which is not trusted, without what Markdown or HTML would read."""
    return "".join(sign for sign in str(name) if sign.isalnum() or sign in "_.- ")
