"""Numbers as people read them; None, for no figure, is a dash."""

from __future__ import annotations


def show_figure(value: float | None, digits: int = 3) -> str:
    """A score or loss; a dash where there is none."""
    if value is None:
        return "–"
    if value and not 0.001 <= abs(value) < 10_000:
        return f"{value:.1e}"
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.0f}"


def show_tick(value: float) -> str:
    """A number on an axis, as short as it can be."""
    return f"{value:.4g}" if not value or 0.001 <= abs(value) < 10_000 else f"{value:.0e}"


def show_points(value: float | None) -> str:
    """A difference of two scores in points (hundredths), with its sign."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def show_count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def show_bytes(value: float | None) -> str:
    """Bytes in the largest decimal unit that leaves at least 1."""
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 100 else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def show_seconds(value: float | None) -> str:
    """A duration as a person says it."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
