"""Sizes, modes, depths and intensities: pictures that are unlike the others of their site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dusss_core.manifest import Record
from sites.check.look import ALPHA, EXIF, FLAT, NAN, PAGES, SUFFIX
from sites.check.report import Report

FEW = 8
"""With fewer pictures than this none is called unlike the others."""
FAR = 6.0
"""Robust standard deviations (1.4826 times the median distance from the median) that make an outlier."""
USUAL = 0.1
"""Share of the pictures from which what is odd about them is only noted."""
COMPARED = ("odd_size", "odd_shape", "black", "white", "intensity", "inverted")
"""Faults that are told by comparison."""
TINY = 32
"""Pixels along a side below which no study's networks see anything."""
PLAIN_MODES = (b"1", b"L", b"P", b"RGB", b"I", b"F", b"gray", b"colour")


def check_pictures(report: Report, records: Sequence[Record], looks: np.ndarray) -> None:
    """Compare every picture that could be read with the others."""
    seen = looks["ok"]
    rows = np.array([record.row for record in records])
    if not seen.any():
        return
    _say_sizes(report, looks[seen])

    def say(level: str, what: str, remedy: str, kind: str, where: np.ndarray) -> None:
        where = seen & where
        # what is so in many pictures is how this data set is
        usual = kind in COMPARED and np.count_nonzero(where) > USUAL * np.count_nonzero(seen)
        report.say_rows("note" if usual else level, "pictures", what, remedy, kind, rows[where])

    flags = looks["flags"]
    say("warning", "{n} of one value only", "drop them", "flat", flags & FLAT > 0)
    say("warning", "{n} [holds|hold] pixels that are no numbers", "export them again", "not_a_number", flags & NAN > 0)
    say(
        "warning",
        "{n} [has|have] several pages, of which the first is read",
        "name one, as in file.tif#2",
        "pages",
        flags & PAGES > 0,
    )
    _check_sizes(say, looks)
    _check_modes(say, looks)
    say(
        "note",
        "{n} [is|are] of another format than [its|their] suffix says, and read as what [it is|they are]",
        "rename them",
        "suffix",
        flags & SUFFIX > 0,
    )
    say(
        "note",
        "{n} [is|are] turned by [its|their] EXIF header, which is applied; a mask that was drawn on the "
        "stored pixels does not fit",
        "look whether their masks fit",
        "exif",
        flags & EXIF > 0,
    )
    usable = seen & (flags & (FLAT | NAN) == 0)
    if usable.sum() >= FEW:
        _check_intensities(say, looks, usable)


def _say_sizes(report: Report, looks: np.ndarray) -> None:
    sizes = Counter(f"{height} x {width}" for height, width in zip(looks["height"], looks["width"], strict=True))
    bits = Counter(int(bits) for bits in looks["bits"])
    report.figures["pictures"] = {
        "sizes": dict(sizes.most_common(10)),
        "bits": {str(k): n for k, n in bits.items()},
    }
    shown = ", ".join(f"{size} ({n})" for size, n in sizes.most_common(3)) + (", ..." if len(sizes) > 3 else "")
    report.say("ok", "pictures", f"height x width {shown}; {', '.join(map(str, sorted(bits)))} bits")


def _check_sizes(say, looks: np.ndarray) -> None:
    height, width = looks["height"].astype(float), looks["width"].astype(float)
    seen = looks["ok"]
    tiny = np.minimum(height, width) < TINY
    say(
        "warning",
        f"{{n}} [has|have] fewer than {TINY} pixels along a side",
        "drop them, or export them larger",
        "tiny",
        tiny,
    )
    if seen.sum() < FEW:
        return
    area, ratio = np.log(np.maximum(height * width, 1)), np.log(np.maximum(height, 1) / np.maximum(width, 1))
    odd = np.abs(area - np.median(area[seen])) > np.log(16)
    long = np.abs(ratio - np.median(ratio[seen])) > np.log(2)
    say(
        "warning",
        "{n} [has|have] far more or fewer pixels than the others (16 times, or a 16th)",
        "look whether they are whole pictures of the same kind",
        "odd_size",
        odd & ~tiny,
    )
    say(
        "warning",
        "{n} [is|are] far longer or wider than the others, and [is|are] squeezed when pictures are scaled",
        "look whether they are whole pictures of the same kind",
        "odd_shape",
        long & ~tiny & ~odd,
    )


def _check_modes(say, looks: np.ndarray) -> None:
    seen, mode = looks["ok"], looks["mode"]
    alpha = looks["flags"] & ALPHA > 0
    say(
        "warning",
        "{n} [has|have] an alpha channel, which is dropped: what it hid is seen",
        "save them without",
        "alpha",
        alpha,
    )
    deep = np.array([m.startswith(b"I;") for m in mode])
    odd = ~np.isin(mode, PLAIN_MODES) & ~alpha & ~deep
    names = ", ".join(sorted({m.decode() for m in mode[seen & odd]}))
    say(
        "warning",
        f"{{n}} [is|are] stored as {names}, and [is|are] converted",
        "save them as gray or RGB",
        "odd_mode",
        odd,
    )
    if seen.sum() < FEW:
        return
    colour = np.isin(mode, (b"RGB", b"P", b"colour")) | (alpha & (mode != b"LA"))
    minority = seen & (colour != (np.count_nonzero(colour[seen]) * 2 > seen.sum()))
    if 0 < minority.sum() <= 0.1 * seen.sum():
        which, others = ("colour", "gray") if colour[minority][0] else ("gray", "colour")
        say(
            "warning",
            f"{{n}} [is|are] stored as {which}, the others as {others}",
            "look whether they are pictures of the same kind",
            "mixed_colour",
            minority & ~odd,
        )
    bits = looks["bits"]
    usual = Counter(bits[seen].tolist()).most_common(1)[0][0]
    other = seen & (bits != usual)
    if 0 < other.sum() <= 0.1 * seen.sum():
        say(
            "warning",
            f"{{n}} [has|have] another depth than the others' {usual} bits",
            "look whether they came from another export",
            "mixed_bits",
            other,
        )


def _check_intensities(say, looks: np.ndarray, usable: np.ndarray) -> None:
    mean, spread = looks["mean"], looks["spread"]
    dark = usable & (mean < 0.02) & (spread < 0.1)
    say("warning", "{n} [is|are] almost black", "export them with their window, or drop them", "black", dark)
    bright = usable & (mean > 0.98)
    say("warning", "{n} [is|are] almost white", "export them with their window, or drop them", "white", bright)
    rest = usable & ~dark & ~bright
    if rest.sum() < FEW:
        return
    far = _far(mean, rest, 0.15) | _far(spread, rest, 0.1)
    say(
        "warning",
        "{n} [is|are] far brighter, darker, flatter or harsher than the others",
        "look whether they are pictures of the same kind, and how they were exported",
        "intensity",
        rest & far,
    )
    thumbs = looks["thumb"][rest].reshape(rest.sum(), -1).astype(np.float32)
    typical = np.median(thumbs[:: max(1, len(thumbs) // 2000)], axis=0)
    alike = _correlations(thumbs, typical)
    if np.median(alike) > 0.5:
        inverted = np.zeros_like(rest)
        inverted[np.flatnonzero(rest)[alike < -0.3]] = True
        say(
            "warning", "{n} [looks|look] like [a negative|negatives] of the others", "invert them", "inverted", inverted
        )


def _far(values: np.ndarray, among: np.ndarray, least: float) -> np.ndarray:
    """Far from the median, in robust standard deviations, and by at least `least`."""
    median = np.median(values[among])
    distance = np.abs(values - median)
    return distance > max(least, FAR * 1.4826 * float(np.median(distance[among])))


def _correlations(rows: np.ndarray, one: np.ndarray) -> np.ndarray:
    rows, one = rows - rows.mean(axis=1, keepdims=True), one - one.mean()
    scale = np.linalg.norm(rows, axis=1) * np.linalg.norm(one)
    return np.divide(rows @ one, scale, out=np.zeros(len(rows), np.float32), where=scale > 0)
