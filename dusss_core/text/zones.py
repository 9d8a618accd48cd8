"""What a sentence says that rules can read: which zones of a picture it names, by which words, and what else.

A picture has six zones: upper, middle and lower thirds of its left and right half, as the sentence calls them. Rules
read chest findings ("upper middle left lung and all right lung", "left lung lower zone", "lower zone of the right
lung"), quadrants and edges ("in the upper right"), and what a picture's density is called. Pure functions of strings;
English is assumed, and what the rules do not know is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

ROWS = ("upper", "middle", "lower")
SIDES = ("left", "right")
ZONES = tuple((row, side) for row in ROWS for side in SIDES)
"""In this order everywhere: from above, left before right."""
WORDS = ("unilateral", "bilateral", "1", "2", "3", "4", "5+", "high", "evenly", "sparsely", "irregularly", "around")
"""What is read beside zones: sides in one word, how many areas, density."""

Zone = tuple[str, str]
Span = tuple[int, int]


class Reading(NamedTuple):
    """What rules read from one sentence."""

    zones: dict[Zone, tuple[Span, ...]]
    """The zones that it names, and the characters of the words that name each: "upper", "left" and "lung" in "upper
    middle left lung"."""
    words: frozenset[str]
    """Of WORDS."""


def reading_of(sentence: str) -> Reading:
    """What rules read from `sentence`. Clauses that deny something name no zone."""
    words = [_Word(match.group().lower(), match.span()) for match in _WORD.finditer(sentence)]
    affirmed = [word for word in words if not _denied(sentence, word.span)]
    found: dict[Zone, list[Span]] = {}
    start = 0
    for end in (*_ends(sentence), len(sentence)):
        for zone, spans in _zones([word for word in affirmed if start <= word.span[0] < end]).items():
            found.setdefault(zone, []).extend(spans)
        start = end
    zones = {zone: tuple(sorted(set(found[zone]))) for zone in ZONES if zone in found}
    return Reading(zones, frozenset(_named(affirmed)))


# ---- vocabulary ----


class _Word(NamedTuple):
    text: str
    span: Span


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_WORD = re.compile(r"\bboth[- ]sided\b|[^\W_]+", re.I)
_ROW = {
    **dict.fromkeys(("upper", "top", "superior", "apical"), ("upper",)),
    **dict.fromkeys(("middle", "mid"), ("middle",)),
    **dict.fromkeys(("lower", "bottom", "inferior", "basal"), ("lower",)),
    **dict.fromkeys(("all", "whole", "entire"), ROWS),
}
_SIDE = {"left": ("left",), "right": ("right",), "both": SIDES}
_LOBE = {f"{side[0]}{row[0]}l": (row, side) for row, side in ZONES}
_NOUNS = _set("lung lungs zone zones lobe lobes field fields part parts side")
_BETWEEN_ROW_AND_SIDE = _set("zone zones lobe lobes field fields part parts third half of in on over the")
_JOINED = _set("and to or")
_DENIALS = _set("no not without neither nor none free clear unremarkable normal")
_COUNTS = {"one": "1", "single": "1", "two": "2", "three": "3", "four": "4", "five": "5+", "six": "5+", "several": "5+"}
_COUNTED = _set("area areas region regions")
_SYNONYMS = {
    "both-sided": "bilateral",
    "both sided": "bilateral",
    "higher": "high",
    "dense": "high",
    "unevenly": "irregularly",
}


# ---- rules ----


def _ends(sentence: str) -> list[int]:
    """Where statements end."""
    return [match.start() for match in re.finditer(r"[.;](?=\s|$)", sentence)]


def _denied(sentence: str, span: Span) -> bool:
    """Whether a word stands in a clause that denies something."""
    before = re.split(r"[.;,](?=\s|$)", sentence[: span[0]])[-1]
    after = re.split(r"[.;,](?=\s|$)", sentence[span[0] :])[0]
    return not _DENIALS.isdisjoint(match.group().lower() for match in _WORD.finditer(before + after))


def _named(words: list[_Word]) -> set[str]:
    """Of WORDS, those that stand there."""
    texts = [word.text for word in words]
    named = {_SYNONYMS.get(text, text) for text in texts} & set(WORDS) - set(_COUNTS.values())
    for place, text in enumerate(texts):
        if text in _COUNTS and not _COUNTED.isdisjoint(texts[place + 1 : place + 4]):
            named.add(_COUNTS[text])
    return named


def _zones(words: list[_Word]) -> dict[Zone, list[Span]]:
    """Zones of one statement, each with the words that name it.

    Rows go with the side that follows them ("upper middle left", "lower zone of the left"), else with the one before
    them ("left lung upper and middle zones"), else with both. A side without rows is all of it.
    """
    groups: list[_Group] = []
    place = 0
    while place < len(words):
        word = words[place]
        if word.text in _ROW:
            rows, place = _rows(words, place)
            side = _side_after(words, place)
            if side is not None:
                groups.append(_Group(rows, words[side], words[place:side]))
                place = side + 1
            elif groups and groups[-1].takes_rows:
                groups[-1].rows.extend(rows)
            else:
                groups.append(_Group(rows, None, []))
            continue
        if word.text in _SIDE or word.text in _LOBE:
            groups.append(_Group([], word, []))
        elif word.text in _NOUNS and groups:
            groups[-1].nouns.append(word)
        place += 1
    found: dict[Zone, list[Span]] = {}
    for group in groups:
        for zone, spans in group.zones():
            found.setdefault(zone, []).extend(spans)
    return found


def _rows(words: list[_Word], place: int) -> tuple[list[_Word], int]:
    """The row words from `place` on, "upper and middle", and where they end."""
    rows, end = [], place
    while place < len(words) and (words[place].text in _ROW or words[place].text in _JOINED):
        if words[place].text in _ROW:
            rows.append(words[place])
            end = place + 1
        place += 1
    return rows, end


def _side_after(words: list[_Word], place: int) -> int | None:
    """Where the side stands that the words before `place` belong to."""
    while place < len(words) and words[place].text in _BETWEEN_ROW_AND_SIDE:
        place += 1
    return place if place < len(words) and words[place].text in _SIDE else None


class _Group:
    """Words that name zones together."""

    def __init__(self, rows: list[_Word], side: _Word | None, nouns: list[_Word]):
        self.rows, self.side = rows, side
        self.nouns = [word for word in nouns if word.text in _NOUNS]
        self.takes_rows = side is not None and side.text in _SIDE and not rows

    def zones(self) -> Iterator[tuple[Zone, list[Span]]]:
        """Each zone, and the words that name it."""
        if self.side is not None and self.side.text in _LOBE:
            yield _LOBE[self.side.text], [self.side.span]
            return
        sides = SIDES if self.side is None else _SIDE[self.side.text]
        common = [word.span for word in (self.side, *self.nouns) if word is not None]
        rows = [(row, [word.span]) for word in self.rows for row in _ROW[word.text]]
        for row, own in rows or [(row, []) for row in ROWS]:
            for side in sides:
                yield (row, side), [*own, *common]
