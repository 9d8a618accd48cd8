"""Sentences: are they there, can they be read, do they name anybody?"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from dusss_core.manifest import Record
from dusss_core.text.languages import NAMES, SIDES, language
from dusss_core.text.wording import known_words, language_is_told, may_flip
from sites.check.contradictions import FEW, NUMBERS
from sites.check.identity import looks_private, names_a_person
from sites.check.report import Report, counted

LONG = 60
"""Words, from which the end of a sentence is cut by the default of vlm.text.max_tokens, 48 tokens."""
MISSPELT_SHOWN = 20
"""Words that are called misspelt, at most."""
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_LIKE_OTHERS = frozenset(
    [
        "through",
        "throughout",
        "third",
        "fourth",
        "fifth",
        "sixth",
        "seventh",
        "eighth",
        "ninth",
        "tenth",
        "eleventh",
        "twelfth",
    ]
)
"""Words that stand in no list of the wordings, and look like one that does, misspelt: though, eight."""
_PLACEHOLDER = re.compile(
    r"(?i)^\W*(?:n/?a|nan|none|null|nil|todo|tbd|xxx*|test|see (?:report|above|previous)|report|text|description|"
    r"missing|unknown|lorem ipsum.*|\?+|-+|\.+)?\W*$"
)
_BROKEN = re.compile(r"�|Ã[\u0080-\u00bf©¤¶¼]|â€|Â[°\u00a0±]|&(?:[a-z]+|#\d+);|<[a-z/][^>]*>|[\x00-\x08\x0b-\x1f]")


def check_text(report: Report, records: Sequence[Record]) -> None:
    """Everything that can be told from the sentences alone."""
    with_text = [record for record in records if record.text]
    distinct = {record.text for record in with_text}
    report.figures["text"] = {
        "with": len(with_text),
        "without": len(records) - len(with_text),
        "distinct": len(distinct),
    }
    train = [record for record in records if record.split == "train"]
    if train and not any(record.text for record in train):
        report.say(
            "warning",
            "text",
            "no training record has text: the site trains with the teacher alone",
            "fill the column text if there are reports",
            "no_text",
        )
        return
    report.say(
        "ok",
        "text",
        f"{counted(len(with_text), '{n} [record|records]')} with text, {len(records) - len(with_text)} without; "
        f"{counted(len(distinct), '{n} different [sentence|sentences]')}",
    )
    if not with_text:
        return
    _check_form(report, records, with_text)
    _check_language(report, with_text)
    _check_words(report, with_text)
    _check_privacy(report, records)


def _check_form(report: Report, records: Sequence[Record], with_text: Sequence[Record]) -> None:
    def say(level: str, what: str, remedy: str, kind: str, where: Callable[[str], object]) -> None:
        report.say_rows(level, "text", what, remedy, kind, [record.row for record in with_text if where(record.text)])

    without = [record.row for record in records if not record.text]
    report.say_rows(
        "note",
        "text",
        "{n} [has|have] no sentence: [it learns|they learn] from the teacher alone",
        "fill them if there are reports",
        "no_sentence",
        without,
    )
    say(
        "warning",
        "{n} [holds|hold] a placeholder in place of a sentence",
        "leave the cell empty, or fill it",
        "placeholder",
        _PLACEHOLDER.match,
    )
    usual = float(np.median([len(_WORD.findall(record.text)) for record in with_text]))
    if usual >= 3:
        say(
            "warning",
            f"{{n}} [is|are] very short, where others have {usual:.0f} words",
            "look whether they say what is in the picture",
            "short_sentence",
            lambda text: _is_short(text, usual),
        )
    say(
        "note",
        f"{{n}} [has|have] more than {LONG} words; what comes after 48 tokens is not read",
        "shorten them, or ask the coordinator about vlm.text.max_tokens",
        "long_sentence",
        lambda text: len(_WORD.findall(text)) > LONG,
    )
    say(
        "warning",
        "{n} [holds|hold] broken letters, or marks of a web page",
        "save the table again as UTF-8, as plain text",
        "broken_text",
        _BROKEN.search,
    )
    if len(with_text) >= FEW and len({record.text for record in with_text}) == 1:
        report.say(
            "warning",
            "text",
            "all records have the same sentence: contrast cannot learn what it says, and text-guided masks know the "
            "site's labelled pictures alone",
            "give each record its own sentence",
            "one_sentence",
        )


def _is_short(text: str, usual: float) -> bool:
    words = len(_WORD.findall(text))
    return not _PLACEHOLDER.match(text) and language(text) != "other" and (words <= 1 or words < usual / 4)


def _check_language(report: Report, with_text: Sequence[Record]) -> None:
    rows: dict[str, list[int]] = defaultdict(list)
    for record in with_text:
        rows[language(record.text)].append(record.row)
    usual = max(rows, key=lambda tongue: len(rows[tongue]))
    for tongue in sorted(rows.keys() - {usual}):
        report.say_rows(
            "warning",
            "text",
            f"{{n}} [is|are] in {NAMES[tongue]}, the others in {NAMES[usual]}",
            "translate them",
            "foreign_sentence",
            rows[tongue],
        )
    if usual in SIDES:
        report.say(
            "note",
            "text",
            f"the sentences are in {NAMES[usual]}: left and right are exchanged in them, they have no "
            "other wordings, and the text encoder should know the language",
            "",
            "language",
        )
    elif usual == "other":
        report.say(
            "warning",
            "text",
            "the sentences are in a language without word lists: pictures are not mirrored, and "
            "sentences have no other wordings",
            "translate them into English, German, French, Italian or Spanish",
            "language",
            rows[usual],
        )
    unclear = [r.row for r in with_text if language(r.text) != "other" and not language_is_told(r.text)]
    report.say_rows(
        "note",
        "text",
        "{n} [has|have] too few words that tell the language; [its picture is|their pictures are] not mirrored",
        "write a whole sentence in English, German, French, Italian or Spanish",
        "unclear_language",
        unclear,
    )
    blocked = [r.row for r in with_text if language(r.text) != "other" and not may_flip(r.text)]
    blocked = sorted(set(blocked) - set(unclear))
    report.say_rows(
        "note",
        "text",
        "{n} [names|name] a side in a way that can not be exchanged (l., R, o'clock); [its picture is|their "
        "pictures are] not mirrored",
        "write left and right",
        "opaque_side",
        blocked,
    )


def _check_words(report: Report, with_text: Sequence[Record]) -> None:
    """Words that the wordings do not know, and among them those that look misspelt."""
    rows: dict[str, list[int]] = defaultdict(list)
    for record in with_text:
        if language(record.text) == "en":
            for word in {word.lower() for word in _WORD.findall(record.text)}:
                rows[word].append(record.row)
    common = known_words() | NUMBERS.keys()
    unknown = Counter({word: len(where) for word, where in rows.items() if word not in common and len(word) > 1})
    report.figures["text"]["unknown_words"] = dict(unknown.most_common(50))
    if unknown:
        shown = ", ".join(f"{word} ({n})" for word, n in unknown.most_common(12)) + (
            ", ..." if len(unknown) > 12 else ""
        )
        report.say(
            "note",
            "text",
            f"{len(unknown)} words are in no list of the wordings, and are kept as they are: {shown}",
            "",
            "unknown_words",
        )
    frequent = sorted({word for word, where in rows.items() if len(where) >= 5 and len(word) >= 4} | set(common))
    odd = {}
    for word in sorted(unknown):
        if len(odd) == MISSPELT_SHOWN:
            break  # each is compared with all that are frequent
        if len(word) >= 5 and word not in _LIKE_OTHERS and unknown[word] <= max(1, len(with_text) // 100):
            near = [n for n in frequent if _swapped(word, n)]
            near += [n for n in difflib.get_close_matches(word, frequent, n=3, cutoff=0.84) if not _same_stem(word, n)]
            if near:
                odd[word] = near[0]
    for word, near in odd.items():
        report.say_rows(
            "warning",
            "text",
            f"'{word}' looks like '{near}' misspelt, in {{n}}",
            "correct it, or leave it where it is meant",
            "misspelt",
            rows[word],
        )


def _swapped(a: str, b: str) -> bool:
    """Whether two words differ in the order of two neighbouring letters alone: brigth, bright."""
    if len(a) != len(b):
        return False
    differ = [i for i in range(len(a)) if a[i] != b[i]]
    return (
        len(differ) == 2
        and differ[1] == differ[0] + 1
        and a[differ[0]] == b[differ[1]]
        and a[differ[1]] == b[differ[0]]
    )


def _same_stem(a: str, b: str) -> bool:
    """Whether one is a form of the other (area, areas; infect, infected), or its opposite (regular, irregular)."""
    if a.replace("-", "") == b.replace("-", ""):
        return True
    short, long = sorted((a, b), key=len)
    ending = long[len(short) :] if long.startswith(short) else None
    endings = (
        "s",
        "es",
        "ed",
        "d",
        "ing",
        "ly",
        "al",
        "ally",
        "y",
        "e",
        "ive",
        "ation",
        "er",
        "ward",
        "wards",
        "most",
        "ion",
        "ar",
        "ness",
    )
    shared = len([1 for x, y in zip(a, b, strict=False) if x == y])
    inflected = shared >= min(len(a), len(b)) - 3 and any(
        a.endswith(x) and b.endswith(y) for x in endings for y in endings
    )
    return ending in endings or (long.endswith(short) and len(long) - len(short) <= 4) or (inflected and a[-1] != b[-1])


def _check_privacy(report: Report, records: Sequence[Record]) -> None:
    what = {
        "name": "[looks as if it|look as if they] named a person",
        "date": "[holds|hold] a date",
        "number": "[holds|hold] what looks like a record number",
        "contact": "[holds|hold] an address or a telephone number",
        "age": "[names|name] an age of 90 years or more",
    }
    rows: dict[str, list[int]] = defaultdict(list)
    for record in records:
        for text in record.sentences:
            for kind in looks_private(text):
                rows[kind].append(record.row)
    for kind, words in what.items():
        report.say_rows(
            "warning",
            "privacy",
            f"{{n}} [sentence|sentences] {words}",
            "take it out: sentences stay at the site, but what a model learns from them does not",
            f"text_{kind}",
            rows[kind],
        )
    named = [record.row for record in records if names_a_person(record.id) or names_a_person(record.patient)]
    report.say_rows(
        "warning",
        "privacy",
        "{n} [has|have] an id or a patient key that looks like a name or a date",
        "use keys that say nothing; they never leave the site, but stand in its logs",
        "private_key",
        named,
    )
