"""What benchmarks write into the pages of docs/: text between two markers, and charts that stand alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dusss_core.errors import UserError

_COLOURS = ("#0072b2", "#d55e00", "#00856a", "#b0467f", "#8c6a00", "#4b4fc4", "#2090b8", "#7a4a21")


def with_body(page: Path, begin: str, end: str, body: str, text: str | None = None) -> str:
    """The page's text with `body` between its two markers.

    Args:
        text: what the page holds, where it has been changed already; None: it is read.

    Raises:
        UserError: the page lacks a marker.
    """
    text = page.read_text(encoding="utf-8") if text is None else text
    if begin not in text or end not in text:
        raise UserError(f"{page}: lacks a marker", f"add the lines {begin} and {end}")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n\n{body}\n{end}{rest.split(end, 1)[1]}"


def as_row(cells: Iterable[object]) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def as_head(names: Iterable[object]) -> list[str]:
    """The first two lines of a table in Markdown."""
    names = list(names)
    return [as_row(names), as_row(["---"] * len(names))]


def standalone(svg: str) -> str:
    """The chart as a file of its own, on light or dark paper: with what the report's page gives it."""
    lines = "".join(
        f".s{i}{{stroke:{colour}}} .dot.s{i}{{fill:{colour};stroke:none}}" for i, colour in enumerate(_COLOURS)
    )
    style = (
        "<style>text{font:12px system-ui,sans-serif;fill:#59636d} .faint{font-size:11px} .strong{font-weight:650}"
        ".grid{stroke:#8b959e;stroke-opacity:.3} .line{fill:none;stroke-width:1.8} .lead{fill:none;stroke:#8b959e}"
        f"{lines}</style>"
    )
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{style}", 1)
