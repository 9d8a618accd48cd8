"""What every chart is drawn of: text, bars, a frame, and names that fit and can still be told apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape


def short_names(names: Iterable[str], length: int) -> dict[str, str]:
    """Each name, cut where it is longer than `length`: as late as leaves all of them different.

    Names that begin alike keep their ends ("hos…-north"); those that differ in the middle alone are numbered.
    """
    names = list(dict.fromkeys(names))
    for tail in range(length - 1):
        head = length - 1 - tail
        cut = {n: n if len(n) <= length else f"{n[:head]}…{n[-tail:] if tail else ''}" for n in names}
        if len(set(cut.values())) == len(names):
            return cut
    digits = len(str(len(names)))
    return {n: f"{n[: length - digits - 1]}…{i}" if len(n) > length else n for i, n in enumerate(names, start=1)}


def named(short: str, name: str) -> Markup:
    """A name as it is shown, in full as a tooltip where it was cut."""
    return escape(name) if short == name else Markup("{}<title>{}</title>").format(short, name)


def rectangle(
    colour: str, x: float, y: float, width: float, height: float, said: str, opacity: float | None = None
) -> Markup:
    """A filled bar; `colour` is a CSS class without "fill-", `said` its tooltip."""
    faint = Markup("") if opacity is None else Markup(' fill-opacity="{:.2f}"').format(opacity)
    return Markup(
        '<rect class="fill-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"{}><title>{}</title></rect>'
    ).format(colour, x, y, width, height, faint, said)


def text(x: float, y: float, content: str | Markup, anchor: str, css: str = "") -> Markup:
    """A piece of text at its baseline."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, css, content
    )


def line(css: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A straight line."""
    return Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(css, x1, x2, y1, y2)


def svg(description: str, width: float, height: float, parts: Sequence[Markup]) -> Markup:
    """A chart of `parts`; `description` is what a screen reader says."""
    return Markup('<svg class="chart" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        width, height, description, Markup("").join(parts)
    )
