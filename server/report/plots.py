"""Charts as inline SVG: no script, no font, no colour of their own beyond CSS variables of the page.

Drawn by hand because they must follow the reader's light or dark scheme, keep their text as text, print, and
take names from sites without trusting them: every string is escaped by `Markup.format`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from server.report.marks import named, rectangle, short_names, svg, text

WIDTH = 320
"""Units of every chart's viewBox; the page shows about one pixel per unit, so that text keeps its size."""
COLOURS = 8
"""The page defines --s0 to --s7; further series repeat the colours with other dashes."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 92, 10, 34
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_LEAST_RANGE = 1e-9
"""Of the values of a chart, beside their size: ticks that lie closer cannot be told apart in double precision."""


@dataclass(frozen=True)
class Series:
    """One line of a chart. `points`: (round, value) in order of round. `style`: "site", "all" or "muted"."""

    name: str
    points: Sequence[tuple[int, float]]
    style: str = "site"
    colour: int = 0


@dataclass(frozen=True)
class Bar:
    """One bar of a chart. `value` is None where there is no figure. `colour`: CSS class of the fill."""

    name: str
    value: float | None
    colour: str = "muted"


def line_chart(
    description: str,
    series: Sequence[Series],
    show: Callable[[float], str],
    limits: tuple[float | None, float | None] = (None, None),
    across: str = "round",
    show_x: Callable[[int], str] = str,
) -> Markup:
    """Lines over rounds (or what `across` names), each with its name at its end.

    Args:
        description: what a screen reader says.
        show: how a value is written on the axis and in tooltips.
        limits: ends of the value axis that are known beforehand.
        show_x: how a place on the other axis is written.
    """
    height, bottom, right = 216, 216 - _BOTTOM, WIDTH - _RIGHT
    rounds = [x for line in series for x, _ in line.points]
    values = [y for line in series for _, y in line.points]
    ticks = _ticks(*_limits(values, limits))
    first, last = min(rounds), max(max(rounds), min(rounds) + 1)

    def place_x(x: float) -> float:
        return _LEFT + (x - first) / (last - first) * (right - _LEFT)

    def place_y(y: float) -> float:
        return bottom - (y - ticks[0]) / (ticks[-1] - ticks[0]) * (bottom - _TOP)

    parts = _value_axis(ticks, place_y, right, show)
    parts += _count_axis(first, max(rounds), place_x, bottom, across, show_x)
    for line in series:
        titles = [f"{line.name}, {across} {show_x(x)}: {show(y)}" for x, y in line.points]
        parts.append(_line(line, place_x, place_y, titles if len(line.points) <= 30 else []))
    ends = [
        (place_x(line.points[-1][0]), place_y(line.points[-1][1]), line) for line in series if line.style != "muted"
    ]
    parts += _end_labels(ends, right, bottom)
    return svg(description, WIDTH, height, parts)


def bar_chart(description: str, bars: Sequence[Bar], limit: float, show: Callable[[float], str]) -> Markup:
    """Horizontal bars from 0 to `limit`, name on the left, figure at the end."""
    step, left, right = 26, 116, WIDTH - 42
    parts, short = [], short_names((bar.name for bar in bars), 18)
    for index, bar in enumerate(bars):
        top = 4 + index * step
        middle = top + 13
        parts.append(
            text(
                left - 8,
                middle + 4,
                named(short[bar.name], bar.name),
                "end",
                "strong" if bar.colour == "accent" else "",
            )
        )
        parts.append(Markup('<line class="base" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(left, top, top + step))
        if bar.value is None:
            parts.append(text(left + 6, middle + 4, "no figure", "start", "faint"))
            continue
        length = max(0.0, min(1.0, bar.value / limit)) * (right - left)
        said = f"{bar.name}: {show(bar.value)}"
        parts.append(rectangle(bar.colour, left, middle - 8, length, 16, said))
        parts.append(text(left + length + 6, middle + 4, show(bar.value), "start", "strong"))
    return svg(description, WIDTH, 8 + len(bars) * step, parts)


def traffic_chart(
    description: str, rounds: Sequence[tuple[str, int, float, float]], show: Callable[[float], str]
) -> Markup:
    """Bytes per round as columns: up to the coordinator above the line, down to the sites below it.

    Args:
        rounds: (phase, round, up, down), in order.
    """
    height, left, right, middle = 216, 62, WIDTH - 12, 108
    limit = _ticks(0, max(max(up, down) for *_, up, down in rounds) or 1)[-1]
    reach = middle - 26
    parts = []
    for value, sign in ((limit, -1), (limit, 1)):
        y = middle + sign * reach
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, y, y))
        parts.append(text(left - 6, y + 4, show(value), "end", "faint"))
    parts.append(text(left - 6, middle + 4, "0", "end", "faint"))
    parts.append(text(left + 4, middle - reach - 7, "from the hospitals", "start", "faint"))
    parts.append(text(left + 4, middle + reach + 16, "to the hospitals", "start", "faint"))
    step = (right - left) / len(rounds)
    gap = min(3.0, step * 0.25)
    for index, (phase, number, up, down) in enumerate(rounds):
        x = left + index * step
        for value, sign, colour in ((up, -1, "accent"), (down, 1, "muted")):
            length = value / limit * reach
            said = f"{phase}, round {number}: {show(value)} {'from' if sign < 0 else 'to'} the hospitals"
            top = middle - length if sign < 0 else middle
            parts.append(rectangle(colour, x + gap / 2, top, step - gap, length, said))
        if index and phase != rounds[index - 1][0]:
            parts.append(
                Markup('<line class="split" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
                    x, middle - reach, middle + reach
                )
            )
    parts.append(Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, middle, middle))
    return svg(description, WIDTH, height, parts)


def _limits(values: Sequence[float], known: tuple[float | None, float | None]) -> tuple[float, float]:
    low = min(values) if known[0] is None else known[0]
    high = max(values) if known[1] is None else known[1]
    if high - low > _LEAST_RANGE * max(abs(low), abs(high), _LEAST_RANGE):
        return low, high
    room = abs(low) if abs(low) > _LEAST_RANGE else 1.0
    return (low, low + room) if known[0] is not None else (low - 0.5 * room, low + 0.5 * room)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, equally spaced, that enclose [low, high]."""
    rough = (high - low) / (count - 1)
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(start, end + 1)]


def _value_axis(
    ticks: Sequence[float], place: Callable[[float], float], right: float, show: Callable[[float], str]
) -> list[Markup]:
    parts = []
    for tick in ticks:
        y = place(tick)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(_LEFT, right, y, y))
        parts.append(text(_LEFT - 6, y + 4, show(tick), "end", "faint"))
    return parts


def _count_axis(
    first: int, last: int, place: Callable[[float], float], bottom: float, across: str, show: Callable[[int], str]
) -> list[Markup]:
    step = max(1, math.ceil((last - first) / 5))
    shown = [x for x in range(first, last + 1, step) if last - x >= step or x == last or step == 1]
    if last not in shown:
        shown.append(last)
    parts = [text(place(x), bottom + 15, show(x), "middle", "faint") for x in shown]
    return [*parts, text((_LEFT + WIDTH - _RIGHT) / 2, bottom + 30, across, "middle", "faint")]


def _line(
    line: Series, place_x: Callable[[float], float], place_y: Callable[[float], float], titles: Sequence[str]
) -> Markup:
    """A line, with a dot for each of `titles`; none for no dots."""
    colour = _colour(line)
    dash = _DASHES[line.colour // COLOURS % len(_DASHES)]
    path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in line.points)
    drawn = [Markup('<polyline class="line {}" points="{}" stroke-dasharray="{}"/>').format(colour, path, dash)]
    if titles and line.style != "muted":
        for (x, y), title in zip(line.points, titles, strict=True):
            drawn.append(
                Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="2.4"><title>{}</title></circle>').format(
                    colour, place_x(x), place_y(y), title
                )
            )
    return Markup("").join(drawn)


def _end_labels(ends: Sequence[tuple[float, float, Series]], right: float, bottom: float) -> list[Markup]:
    """Names beside the lines' ends, pushed apart so that none covers another."""
    gap = 14
    ordered = sorted(ends, key=lambda end: end[1])
    places: list[float] = []
    for _, y, _ in ordered:
        places.append(max(y, places[-1] + gap) if places else max(y, _TOP))
    excess = places[-1] - bottom if places else 0
    if excess > 0:
        limit = bottom
        for index in reversed(range(len(places))):
            places[index] = min(places[index], limit)
            limit = places[index] - gap
    parts, short = [], short_names((line.name for _, _, line in ordered), 11)
    for (x, y, line), label_y in zip(ordered, places, strict=True):
        lead = Markup('<polyline class="lead" points="{:.1f},{:.1f} {:.1f},{:.1f}"/>')
        parts.append(lead.format(x + 4, y, right + 11, label_y))
        parts.append(
            Markup('<circle class="dot {}" cx="{}" cy="{:.1f}" r="4"/>').format(_colour(line), right + 15, label_y)
        )
        parts.append(
            text(
                right + 23,
                label_y + 4,
                named(short[line.name], line.name),
                "start",
                "strong" if line.style == "all" else "",
            )
        )
    return parts


def _colour(line: Series) -> str:
    return line.style if line.style != "site" else f"s{line.colour % COLOURS}"
