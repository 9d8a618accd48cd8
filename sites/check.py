"""Is this hospital's data fit to train on? Reads every picture once; says what is well and what to mend."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dusss_core.errors import UserError
from dusss_core.manifest import SPLITS, Problem, Record, labelled_by_fraction, raise_problems, read_manifest
from dusss_core.readers import read_raw
from sites.config import SiteConfig, load_site
from sites.packing import Progress, console_progress, in_order
from sites.prepare import load_mask

SMALL_MASK = 5e-4
"""Foreground masks below this share of the picture vanish when it is scaled down."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Literal["ok", "warning", "error"]
    subject: str
    message: str
    remedy: str = ""


@dataclass
class Report:
    """What `check_site` found."""

    site: str
    figures: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def fit(self) -> bool:
        """Whether the site can take part: nothing is an error."""
        return all(finding.level != "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "site": self.site,
            "fit": self.fit,
            "figures": self.figures,
            "findings": [asdict(f) for f in self.findings],
        }


@dataclass(frozen=True)
class Look:
    """What is kept of one picture."""

    record: Record
    size: tuple[int, int]
    bits: int
    fingerprint: bytes
    flat: bool
    """All pixels have one value."""
    covered: float | None
    """Share of foreground pixels; None without a mask."""
    classes: tuple[int, ...]
    """Class indices in the mask, the background left out."""


def check_site(path: Path, overrides: Iterable[str] = (), progress: Progress | None = None) -> Report:
    """Check the site file `path`, its manifest and every picture.

    Raises:
        UserError: the site file itself cannot be used. All else is in the report.
    """
    site = load_site(path, overrides)
    report = Report(site.site)
    try:
        records = read_manifest(site.data.manifest)
    except UserError as error:
        report.findings.append(Finding("error", "manifest", error.problem, error.remedy))
        return report
    report.findings.append(Finding("ok", "manifest", f"{len(records)} records in {site.data.manifest}"))
    _check_counts(report, site, records)
    _check_text(report, records)
    with console_progress(f"reading the pictures of {site.site}", progress) as show:
        looks, problems = _look_at_all(records, show)
    try:
        raise_problems(site.data.manifest, problems)
        report.findings.append(Finding("ok", "files", "every picture and mask can be read, and their sizes agree"))
    except UserError as error:
        report.findings.append(Finding("error", "files", error.problem, error.remedy))
    if looks:
        _check_pictures(report, looks)
        _check_masks(report, looks)
        _check_duplicates(report, looks)
    return report


def print_report(report: Report) -> None:
    """The report as a table on stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}
    table = Table(title=f"site {report.site}", title_justify="left", show_lines=False)
    for name in ("", "subject", "found"):
        table.add_column(name)
    for finding in report.findings:
        remedy = f"\n-> {escape(finding.remedy)}" if finding.remedy else ""
        table.add_row(marks[finding.level], finding.subject, escape(finding.message) + remedy)
    console = Console()
    console.print(table)
    levels = Counter(finding.level for finding in report.findings)
    verdict = "[green]fit to train on[/]" if report.fit else "[red]not fit[/]: mend the errors first"
    console.print(f"{verdict} ({_count(levels['error'], 'error')}, {_count(levels['warning'], 'warning')})")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _check_counts(report: Report, site: SiteConfig, records: Sequence[Record]) -> None:
    of = {name: [record for record in records if record.split == name] for name in SPLITS}
    labelled = len(labelled_by_fraction(records, site.data.label_fraction))
    n = {name: len(members) for name, members in of.items()}
    report.figures["splits"] = n
    report.figures["train"] = {
        "labelled": labelled,
        "unlabelled": n["train"] - labelled,
        "with_text": sum(bool(record.text) for record in of["train"]),
    }

    def say(level: str, subject: str, message: str, remedy: str = "") -> None:
        report.findings.append(Finding(level, subject, message, remedy))

    say("ok", "splits", ", ".join(f"{name} {count}" for name, count in n.items()))
    for name in ("val", "test"):
        if n[name] and not any(record.mask for record in of[name]):
            say("warning", name, f"none of its {n[name]} records has a mask", "evaluation needs masks")
    if not site.limits.phases:
        if not n["test"]:
            say(
                "error",
                "test",
                "the site only evaluates, and has no test records",
                "add some, or allow phases",
            )
        return
    if n["train"] == 0:
        say(
            "error",
            "train",
            "no training records",
            "give some records the split train, or set limits.phases: []",
        )
        return
    if n["train"] == 1:
        say("warning", "train", "a single training record", "add more: it will weigh next to nothing")
    if labelled == 0:
        say(
            "warning",
            "labels",
            "no labelled training record: the site trains on pseudo-labels",
            "label some pictures, or raise data.label_fraction",
        )
    elif labelled == n["train"]:
        say(
            "warning",
            "labels",
            "no unlabelled training record: the site trains supervised only",
            "nothing to mend; add pictures without masks if there are any",
        )
    else:
        say("ok", "labels", f"{labelled} labelled and {n['train'] - labelled} unlabelled training records")
    if n["val"] == 0:
        say(
            "warning",
            "val",
            "no validation records: the site cannot tell when to stop",
            "hold some out, by patient",
        )
    if n["test"] == 0:
        say(
            "warning",
            "test",
            "no test records: the site is absent from the evaluation",
            "hold some out, by patient",
        )
    if not any(record.patient for record in records):
        say(
            "warning",
            "patients",
            "no column patient: a patient in two splits cannot be seen",
            "add it if you can",
        )


def _check_text(report: Report, records: Sequence[Record]) -> None:
    with_text = [record.text for record in records if record.text]
    report.figures["text"] = {
        "with": len(with_text),
        "without": len(records) - len(with_text),
        "distinct": len(set(with_text)),
    }
    train = [record for record in records if record.split == "train"]
    if train and not any(record.text for record in train):
        report.findings.append(
            Finding(
                "warning",
                "text",
                "no training record has text: the site trains with the teacher alone",
                "fill the column text if there are reports",
            )
        )
        return
    report.findings.append(
        Finding(
            "ok",
            "text",
            f"{len(with_text)} records with text, {len(records) - len(with_text)} "
            f"without; {len(set(with_text))} different sentences",
        )
    )


def _look_at_all(records: Sequence[Record], progress: Progress) -> tuple[list[Look], list[Problem]]:
    looks, problems = [], []
    for done, found in enumerate(in_order(_look_at, records), start=1):
        (problems if isinstance(found, Problem) else looks).append(found)
        progress(done, len(records))
    return looks, problems


def _look_at(record: Record) -> Look | Problem:
    try:
        raw = read_raw(record.image)
        size = raw.pixels.shape[:2]
        mask = load_mask(record, size)
    except UserError as error:
        return Problem(record.row, error.problem, error.remedy)
    pixels = np.ascontiguousarray(raw.pixels)
    fingerprint = hashlib.blake2b(
        pixels.data, digest_size=16, key=str((pixels.shape, pixels.dtype.str)).encode()
    ).digest()
    counts = np.bincount(mask.reshape(-1))
    return Look(
        record,
        size,
        raw.bits,
        fingerprint,
        flat=bool(pixels.min() == pixels.max()),
        covered=None if record.mask is None else float(1 - counts[0] / mask.size),
        classes=tuple(int(c) for c in np.flatnonzero(counts) if c),
    )


def _check_pictures(report: Report, looks: Sequence[Look]) -> None:
    sizes = Counter(f"{look.size[0]} x {look.size[1]}" for look in looks)
    bits = Counter(look.bits for look in looks)
    report.figures["pictures"] = {
        "sizes": dict(sizes.most_common(10)),
        "bits": {str(k): n for k, n in bits.items()},
    }
    shown = ", ".join(f"{size} ({n})" for size, n in sizes.most_common(3)) + (", ..." if len(sizes) > 3 else "")
    report.findings.append(
        Finding("ok", "pictures", f"height x width {shown}; {', '.join(str(b) for b in sorted(bits))} bits")
    )
    flat = [look.record for look in looks if look.flat]
    if flat:
        report.findings.append(
            Finding("warning", "pictures", f"{len(flat)} of one value only: {_rows(flat)}", "drop them")
        )


def _check_masks(report: Report, looks: Sequence[Look]) -> None:
    covered = np.array([look.covered for look in looks if look.covered is not None])
    if not covered.size:
        return
    empty = float((covered == 0).mean())
    classes = sorted({c for look in looks for c in look.classes})
    small = [look.record for look in looks if look.covered and look.covered < SMALL_MASK]
    median = float(np.median(covered[covered > 0])) if (covered > 0).any() else 0.0
    report.figures["masks"] = {
        "n": int(covered.size),
        "empty_share": empty,
        "median_coverage": median,
        "small": len(small),
        "classes": classes,
    }
    report.findings.append(
        Finding(
            "ok",
            "masks",
            f"{covered.size} masks, {empty:.1%} empty; the others cover "
            f"{median:.1%} (median); classes {', '.join(map(str, classes)) or 'none'}",
        )
    )
    if empty == 1:
        report.findings.append(Finding("warning", "masks", "every mask is empty", "check how they were exported"))
    if small:
        report.findings.append(
            Finding(
                "warning",
                "masks",
                f"{len(small)} cover less than {SMALL_MASK:.2%} of the picture: {_rows(small)}",
                "check them; such findings vanish when pictures are scaled",
            )
        )


def _check_duplicates(report: Report, looks: Sequence[Look]) -> None:
    same: dict[bytes, list[Record]] = defaultdict(list)
    for look in looks:
        same[look.fingerprint].append(look.record)
    repeated = [members for members in same.values() if len(members) > 1]
    leaks = [members for members in repeated if len({record.split for record in members}) > 1]
    within = len(repeated) - len(leaks)
    report.figures["duplicates"] = {"across_splits": len(leaks), "within_split": within}
    if leaks:
        shown = "; ".join(_rows(members) for members in leaks[:3])
        report.findings.append(
            Finding(
                "error",
                "duplicates",
                f"{len(leaks)} pictures are in more than one split: {shown}",
                "keep each in one split only: test figures are too good otherwise",
            )
        )
    if within:
        shown = "; ".join(_rows(members) for members in repeated if members not in leaks)
        report.findings.append(
            Finding(
                "warning",
                "duplicates",
                f"{within} pictures appear more than once in a split: {shown[:200]}",
                "drop the repeated rows",
            )
        )
    if not repeated:
        report.findings.append(Finding("ok", "duplicates", "no picture appears twice"))


def _rows(records: Sequence[Record]) -> str:
    shown = ", ".join(f"row {record.row}" for record in records[:5])
    return shown + (", ..." if len(records) > 5 else "")
