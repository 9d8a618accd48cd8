"""What a check has found: graded findings, each with the rows of the manifest that it is about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note", "ok")
"""From the gravest."""
ROWS_SHOWN = 8
"""Rows that a message names; all of them are in `Finding.rows`."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Level
    """error: the site can not train with it, or test figures would be wrong. warning: look at it. note: good to
    know."""
    subject: str
    message: str
    remedy: str = ""
    kind: str = ""
    """Name of the kind of fault, the same in every release."""
    rows: tuple[int, ...] = ()
    """Rows of the manifest as a spreadsheet counts: the header is row 1."""


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

    def say(
        self, level: Level, subject: str, message: str, remedy: str = "", kind: str = "", rows: Iterable[int] = ()
    ) -> None:
        """Add a finding."""
        self.findings.append(Finding(level, subject, message, remedy, kind, tuple(sorted({int(row) for row in rows}))))

    def say_rows(self, level: Level, subject: str, what: str, remedy: str, kind: str, rows: Sequence[int]) -> None:
        """Add a finding about `rows`, which its message names; nothing if there are none.

        Args:
            what: with `{n}` for the number of rows, as `counted` has it.
        """
        rows = sorted({int(row) for row in rows})
        if rows:
            self.say(level, subject, f"{counted(len(rows), what)}: {name_rows(rows)}", remedy, kind, rows)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "site": self.site,
            "fit": self.fit,
            "figures": self.figures,
            "findings": [asdict(f) for f in self.findings],
        }


def counted(number: int, what: str) -> str:
    """`what` with the number for `{n}`, and of each `[one|many]` what fits it: `{n} [mask is|masks are] empty`."""
    return re.sub(r"\[([^][|]*)\|([^][|]*)\]", r"\1" if number == 1 else r"\2", what.replace("{n}", str(number)))


def name_rows(rows: Sequence[int]) -> str:
    """row 2, row 5, ..."""
    shown = ", ".join(f"row {row}" for row in rows[:ROWS_SHOWN])
    return shown + (f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else "")


def print_report(report: Report) -> None:
    """The report as a table on stdout, the gravest findings last, where the eye is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    marks = {"ok": "[green]ok[/]", "note": "note", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}
    table = Table(title=f"site {report.site}", title_justify="left", show_lines=False)
    for name in ("", "subject", "found"):
        table.add_column(name)
    for finding in sorted(report.findings, key=lambda finding: -LEVELS.index(finding.level)):
        remedy = f"\n-> {escape(finding.remedy)}" if finding.remedy else ""
        table.add_row(marks[finding.level], finding.subject, escape(finding.message) + remedy)
    console = Console()
    console.print(table)
    levels = Counter(finding.level for finding in report.findings)
    verdict = "[green]fit to train on[/]" if report.fit else "[red]not fit[/]: mend the errors first"
    console.print(f"{verdict} ({_count(levels['error'], 'error')}, {_count(levels['warning'], 'warning')})")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
