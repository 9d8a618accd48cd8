"""Sentences against masks: a side, a height, a number or a negation that the mask contradicts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dusss_core.manifest import Record
from dusss_core.text.languages import language
from dusss_core.text.wording import sides
from sites.check.report import Report

FEW = 5
"""Sentences and masks that have to be compared before anything is said of how they go together."""
NUMBERS = {
    "one": 1,
    "a single": 1,
    "single": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
}
_NEGATIVE = re.compile(
    r"(?i)\b(?:no|not|without|neither|none|never|free|clear|clean|normal|unremarkable|absent|negative|denies|resolved|"
    r"kein\w*|ohne|unauffällig\w*|sans|aucune?|normale?s?|senza|nessun\w*|sin|ningun\w*|ningún)\b"
)
_COUNT = re.compile(
    rf"(?i)\b({'|'.join(NUMBERS)}|\d{{1,4}})\s+(?:[a-z-]+\s+){{0,2}}?(?:areas?|regions?|lesions?|nodules?|mass(?:es)?|"
    r"polyps?|opacit(?:y|ies)|findings?|spots?|nuclei|nucleus|tumou?rs?|cysts?|foci|focus|consolidations?|infiltrates?|"
    r"metastas[ie]s|haemorrhages?|hemorrhages?|cells|glands?)\b"
)
_BOTH = re.compile(r"(?i)\b(?:bilateral(?:ly)?|both|both-sided|beidseit\w*|beidseits|bilatéra\w*|bilaterale?)\b")
_ONE = re.compile(r"(?i)\b(?:unilateral(?:ly)?|einseitig\w*|unilatéra\w*)\b")
_ABOVE = re.compile(r"(?i)\b(?:upper|top|superior|apical|oben|ober\w*|supérieure?|superiore)\b")
_BELOW = re.compile(r"(?i)\b(?:lower|bottom|inferior|basal|basilar|bases?|unten|unter\w*|inférieure?|inferiore)\b")
_LEVEL = re.compile(r"(?i)\b(?:middle|mid|cent(?:er|re|ral)|all|whole|entire|diffuse|hil\w+|mittel\w*)\b")


class Vote(NamedTuple):
    """What a sentence says against what its mask shows."""

    row: int
    agrees: bool


def check_against_masks(
    report: Report, records: Sequence[Record], looks: np.ndarray, left_is: str | None = None
) -> None:
    """Contradictions between sentences and masks.

    Args:
        left_is: which half of the picture "left" means, `left` or `right` (the patient's left is the right half of most
            X-rays); None: told from the data set itself, where most sentences agree.
    """
    pairs = [(record, looks[i]) for i, record in enumerate(records) if record.text and looks["masked"][i]]
    shown = [(record, look) for record, look in pairs if look["covered"] > 0]
    _check_emptiness(report, pairs)
    _check_sides(report, shown, left_is)
    _say_votes(
        report,
        "count",
        "a number of findings",
        "the mask has another number of parts",
        [vote for pair in shown if (vote := _count_vote(*pair))],
    )
    _say_votes(
        report,
        "height",
        "above or below",
        "the mask lies in the other half",
        [vote for pair in shown if (vote := _height_vote(*pair))],
    )


def _statements(text: str) -> list[str]:
    """Those that say that something is there."""
    parts = re.split(r"(?<=[^\d])[.;]\s+|[.;]$|,\s*(?=(?:the |and |but )?(?:left|right)\b[^,]*\b(?:is|are)\b)", text)
    return [part for part in parts if part and part.strip() and not _NEGATIVE.search(part)]


def _denies(text: str) -> bool:
    """Whether each of its statements says that something is not there or is well; idle ones (the heart) count for
    nothing where the last word is of the finding."""
    return bool(_NEGATIVE.search(text)) and not _statements(text)


def _locates(text: str) -> bool:
    return any(sides(part) or _COUNT.search(part) or _BOTH.search(part) for part in _statements(text))


def _check_emptiness(report: Report, pairs) -> None:
    denied = [r.row for r, look in pairs if look["covered"] > 0 and _denies(r.text)]
    found = [r.row for r, look in pairs if look["covered"] == 0 and _locates(r.text)]
    for what, kind, rows in (
        ("[says|say] that there is nothing, and [its|their] mask is not empty", "denies_mask", denied),
        ("[says|say] where something is, and [its|their] mask is empty", "asserts_empty", found),
    ):
        most = len(rows) > max(2, len(pairs) / 3)
        report.say_rows(
            "note" if most else "warning",
            "text",
            f"{{n}} [sentence|sentences] {what}",
            "correct the sentence or the mask",
            kind,
            rows,
        )


def _check_sides(report: Report, shown, left_is: str | None) -> None:
    named = [(record, look, _named_sides(record.text)) for record, look in shown]
    single = [
        (record, float(look["left"]), *named_sides) for record, look, named_sides in named if len(named_sides) == 1
    ]
    # share of the mask in the half that the sentence names, if left is the picture's left
    shares = [(record, share if side == "left" else 1 - share) for record, share, side in single]
    clear = [share for _, share in shares if abs(share - 0.5) > 0.2]
    picture = sum(share > 0.5 for share in clear)
    if left_is is None and len(clear) >= FEW and max(picture, len(clear) - picture) >= 0.75 * len(clear):
        left_is = "left" if 2 * picture > len(clear) else "right"
        which = max(picture, len(clear) - picture)
        report.say("ok", "text", f"'left' means the picture's {left_is} half ({which} of {len(clear)} sentences)")
    elif left_is is None and len(clear) >= FEW:
        report.say(
            "warning",
            "text",
            f"'left' means the picture's left half in {picture} of {len(clear)} sentences, and its "
            "right half in the others",
            "decide on one, and say so with --left",
            "sides_undecided",
        )
    report.figures["text"]["left_is"] = left_is
    if left_is is None:
        return
    votes = [Vote(record.row, (share if left_is == "left" else 1 - share) >= 0.05) for record, share in shares]
    wrong = [vote.row for vote in votes if not vote.agrees]
    report.say_rows(
        "warning",
        "text",
        "{n} [sentence names|sentences name] one side, and [its|their] mask is on the other",
        "correct the sentence, or look whether the picture was mirrored",
        "contradicts_side",
        wrong,
    )
    both = [
        Vote(record.row, 0.01 <= look["left"] <= 0.99)
        for record, look, which in named
        if len(which) == 2 or (not which and any(_BOTH.search(part) for part in _statements(record.text)))
    ]
    _say_votes(report, "both_sides", "both sides", "the mask is on one", both)
    one = [Vote(r.row, not 0.2 <= look["left"] <= 0.8) for r, look, _ in named if _ONE.search(r.text)]
    _say_votes(report, "one_side", "one side", "the mask is on both", one)


def _named_sides(text: str) -> frozenset[str]:
    tongue = language(text)
    parts = _statements(text)
    if any(_BOTH.search(part) for part in parts):
        return frozenset(("left", "right"))
    # parts of a sentence may be too short to tell their language
    whole = sides(text)
    return (
        frozenset.union(frozenset(), *(sides(part) for part in parts))
        if tongue == "en"
        else whole
        if parts
        else frozenset()
    )


def _count_vote(record: Record, look) -> Vote | None:
    counts = {number for part in _statements(record.text) for number in _counts(part)}
    if len(counts) != 1:
        return None
    said, least, most = counts.pop(), int(look["parts"]), int(look["lumps"])
    slack = 0 if said <= 5 else 0.5 * said
    return Vote(record.row, least - slack <= said <= most + slack)


def _counts(text: str) -> list[int]:
    return [NUMBERS.get(word.lower()) or int(word) for word in (match[1] for match in _COUNT.finditer(text))]


def _height_vote(record: Record, look) -> Vote | None:
    text = " ".join(_statements(record.text))
    above, below = bool(_ABOVE.search(text)), bool(_BELOW.search(text))
    if above == below or _LEVEL.search(text):
        return None
    return Vote(record.row, (look["top"] if above else 1 - look["top"]) >= 0.05)


def _say_votes(report: Report, kind: str, says: str, shows: str, votes: Sequence[Vote]) -> None:
    wrong = [vote.row for vote in votes if not vote.agrees]
    if len(votes) >= FEW and 3 * len(wrong) > len(votes):
        report.say(
            "note",
            "text",
            f"sentences that name {says} and masks do not go together here ({len(wrong)} of "
            f"{len(votes)} differ): nothing is said of single rows",
            "",
            f"contradicts_{kind}_often",
        )
        return
    report.say_rows(
        "warning",
        "text",
        f"{{n}} [sentence names|sentences name] {says}, and {shows}",
        "correct the sentence or the mask",
        f"contradicts_{kind}",
        wrong,
    )
