"""Is this hospital's data fit to train on? Reads every picture once; says what is well, and row by row what to mend.

`look` says what is kept of a picture, `scan` looks at all of them, `pictures`, `masks`, `duplicates`, `sentences`,
`contradictions`, `identity` and `labels` judge, `report` and `page` tell.

May enter: a site file. A folder of data in any state.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dusss_core.config import TrainingConfig
from dusss_core.errors import UserError
from dusss_core.manifest import MOST_LINES, Problem, Record, scan_manifest
from sites.check.contradictions import check_against_masks
from sites.check.duplicates import check_duplicates
from sites.check.labels import check_counts
from sites.check.masks import check_masks
from sites.check.pictures import check_pictures
from sites.check.report import Finding, Report, counted, print_report
from sites.check.scan import Scan, scan
from sites.check.sentences import check_text
from sites.config import load_site
from sites.packing import Progress, console_progress

__all__ = ["Finding", "Report", "check_site", "print_report"]


def check_site(
    path: Path,
    overrides: Iterable[str] = (),
    progress: Progress | None = None,
    *,
    study: TrainingConfig | None = None,
    left_is: str | None = None,
    fresh: bool = False,
    workers: int | None = None,
    page: Path | None = None,
) -> Report:
    """Check the site file `path`, its manifest and every picture.

    What is seen of a picture is kept in the site's state folder until the picture changes: a check that was broken off
    goes on, and one that is made again is quick.

    Args:
        study: settings to check against: its classes, and how many labels it asks for.
        left_is: half of the picture, left or right, that "left" means; None: as most sentences of the site have it.
        fresh: look at every picture anew.
        workers: processes; None: one for each core.
        page: write the report as a web page too, with examples; it shows pictures of patients.

    Raises:
        UserError: the site file itself cannot be used. All else is in the report.
    """
    site = load_site(path, overrides)
    report = Report(site.site)
    try:
        records, problems = scan_manifest(site.data.manifest)
    except UserError as error:
        report.say("error", "manifest", error.problem, error.remedy, "manifest")
        return report
    report.say("ok", "manifest", f"{counted(len(records), '{n} [record|records]')} in {site.data.manifest}")
    _say_problems(report, "manifest", f"{site.data.manifest}, ", problems)
    broken = {problem.row for problem in problems if problem.kind in ("file_missing", "manifest_row")}
    check_counts(report, site, records, study)
    check_text(report, records)
    usable = [record for record in records if record.row not in broken]
    if not usable:
        return report
    with console_progress(f"reading the pictures of {site.site}", progress) as show:
        seen = scan(usable, site.state_dir / "check", show, fresh=fresh, workers=workers)
    report.figures["known"] = seen.known
    _check_files(report, usable, seen)
    check_pictures(report, usable, seen.looks)
    check_masks(report, usable, seen.looks, study)
    check_duplicates(report, usable, seen.looks)
    check_against_masks(report, usable, seen.looks, left_is)
    if page is not None:
        from sites.check.page import write_page

        write_page(page, report, usable)
    return report


def _check_files(report: Report, records: list[Record], seen: Scan) -> None:
    problems = [
        Problem(records[i].row, what, remedy, kind)
        for i, found in sorted(seen.problems.items())
        for kind, what, remedy in found
    ]
    if problems:
        _say_problems(report, "files", "", problems)
    else:
        report.say("ok", "files", "every picture and mask can be read, and their sizes agree")
    names = sorted({name for tags in seen.tags.values() for name in tags})
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    report.say_rows(
        "warning",
        "privacy",
        f"{{n}} [file has|files have] header fields that may identify a person ({shown})",
        "empty them, if files are ever handed on: no field is read in training",
        "identifying_tags",
        [records[i].row for i in seen.tags],
    )


def _say_problems(report: Report, subject: str, source: str, problems: list[Problem]) -> None:
    """Each by itself, as many as one can read; then how many more there are."""
    problems = sorted(problems, key=lambda problem: problem.row)
    for problem in problems[: 2 * MOST_LINES]:
        report.say(
            "error",
            subject,
            f"{source}row {problem.row}: {problem.text}",
            problem.remedy,
            problem.kind,
            [problem.row, *problem.also],
        )
    more = problems[2 * MOST_LINES :]
    report.say_rows(
        "error",
        subject,
        "{n} more [problem|problems] of this sort",
        "mend the first, and check again",
        "more",
        [problem.row for problem in more],
    )
