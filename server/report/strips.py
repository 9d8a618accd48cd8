"""Charts with a row for each site: figures with their intervals, shares of pictures, and who is tested where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from server.report.marks import line, named, rectangle, short_names, svg, text
from server.report.plots import WIDTH

_STEP, _LEFT = 22, 104
"""Height of a row; where the names end."""
MOST_WIDE = 10
"""With more sites than this the cells of a matrix are small."""


@dataclass(frozen=True)
class Measured:
    """A figure in [0, 1] with the ends of its interval, and another figure beside it; None: not known."""

    name: str
    value: float | None
    ends: tuple[float, float] | None = None
    beside: float | None = None


def interval_chart(description: str, rows: Sequence[Measured], show: Callable[[float], str]) -> Markup:
    """A dot for each figure with a line from end to end, and a ring for the figure beside it."""
    right, bottom = WIDTH - 44, 6 + len(rows) * _STEP
    short = short_names((row.name for row in rows), 16)

    def place(value: float) -> float:
        return _LEFT + max(0.0, min(1.0, value)) * (right - _LEFT)

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(line("grid", place(tick), 2, place(tick), bottom))
        parts.append(text(place(tick), bottom + 14, f"{tick:g}", "middle", "faint"))
    for index, row in enumerate(rows):
        y = 6 + (index + 0.5) * _STEP
        parts.append(text(_LEFT - 8, y + 4, named(short[row.name], row.name), "end"))
        if row.value is None:
            parts.append(text(_LEFT + 6, y + 4, "no figure", "start", "faint"))
            continue
        said = f"{row.name}: {show(row.value)}"
        if row.ends is not None:
            parts.append(line("whisker", place(row.ends[0]), y, place(row.ends[1]), y))
            said += f", from {show(row.ends[0])} to {show(row.ends[1])}"
        if row.beside is not None:
            said += f"; pooled {show(row.beside)}"
            parts.append(Markup('<circle class="ring" cx="{:.1f}" cy="{:.1f}" r="4.5"/>').format(place(row.beside), y))
        dot = Markup('<circle class="spot" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>')
        parts.append(dot.format(place(row.value), y, said))
        parts.append(text(right + 8, y + 4, show(row.value), "start", "strong"))
    return svg(description, WIDTH, bottom + 20, parts)


def share_chart(description: str, rows: Sequence[tuple[str, Sequence[tuple[float, float, int]]]]) -> Markup:
    """A bar for each row, cut into shares: darker for higher figures.

    Args:
        rows: name, and (from, to, number) of each bin in [0, 1], in order; no bins: none are known.
    """
    right, bottom = WIDTH - 12, 6 + len(rows) * _STEP
    short = short_names((name for name, _ in rows), 16)
    parts = []
    for index, (name, bins) in enumerate(rows):
        top = 6 + index * _STEP
        parts.append(text(_LEFT - 8, top + _STEP / 2 + 4, named(short[name], name), "end"))
        x, whole = float(_LEFT), sum(number for *_, number in bins)
        if not whole:
            parts.append(text(_LEFT + 6, top + _STEP / 2 + 4, "not told: too few pictures", "start", "faint"))
        for start, end, number in bins:
            width = number / whole * (right - _LEFT) if whole else 0
            if number:
                said = f"{name}: {number} pictures with Dice {start:g} to {end:g}"
                parts.append(rectangle("accent", x, top + 3, width, _STEP - 6, said, _opacity((start + end) / 2)))
                if width > 7 * len(str(number)):
                    parts.append(text(x + width / 2, top + _STEP / 2 + 4, str(number), "middle", "on"))
            x += width
    for index in range(5):
        x = 12 + index * (right - 12) / 5
        parts.append(rectangle("accent", x, bottom + 6, 10, 10, "", _opacity(index / 5 + 0.1)))
        parts.append(text(x + 13, bottom + 15, f"{index / 5:g}–{(index + 1) / 5:g}", "start", "faint"))
    return svg(description, WIDTH, bottom + 22, parts)


def matrix_chart(
    description: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Mapping[str, float | None]]],
    show: Callable[[float], str],
) -> tuple[Markup, int]:
    """A cell for each row and column, darker for higher figures; a frame where both have the same name.

    Returns:
        The chart, and how many units wide it is.
    """
    wide = len(columns) <= MOST_WIDE
    cell, height, head = (46, 26, 70) if wide else (27, 20, 92)
    short = short_names([*columns, *(name for name, _ in rows)], 15)
    known = [value for _, row in rows for value in row.values() if value is not None]
    low, reach = min(known, default=0.0), (max(known, default=1.0) - min(known, default=0.0)) or 1.0
    parts = []
    for index, name in enumerate(columns):
        x = _LEFT + (index + 0.5) * cell
        turned = Markup('<text transform="translate({:.1f} {:.1f}) rotate(-50)" class="faint">{}</text>')
        parts.append(turned.format(x, head - 6, named(short[name], name)))
    for number, (name, row) in enumerate(rows):
        top = head + number * height
        parts.append(text(_LEFT - 8, top + height / 2 + 4, named(short[name], name), "end"))
        for index, column in enumerate(columns):
            x, value = _LEFT + index * cell, row.get(column)
            if value is not None:
                said = f"{name}, tested at {column}: {show(value)}"
                fill = 0.06 + 0.5 * (value - low) / reach
                parts.append(rectangle("accent", x + 1, top + 1, cell - 2, height - 2, said, fill))
            if name == column:
                frame = Markup('<rect class="frame" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
                parts.append(frame.format(x + 1, top + 1, cell - 2, height - 2))
            told = "–" if value is None else show(value) if wide else f"{100 * value:.0f}"
            parts.append(text(x + cell / 2, top + height / 2 + 4, told, "middle", "" if wide else "small"))
    # the last name is turned to the right, beyond its column
    width = max(WIDTH, _LEFT + len(columns) * cell + 60)
    return svg(description, width, head + len(rows) * height + 4, parts), width


def _opacity(middle: float) -> float:
    return 0.12 + 0.75 * middle
