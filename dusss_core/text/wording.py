"""Other wordings of a sentence that keep its finding, and its mirror image.

Pure functions of strings. A wording may drop words that say nothing, exchange true synonyms and reorder
clauses that do not lean on each other. It never touches a side, a place, a number, a negation or the name of
a finding; where that is in doubt, the sentence stays as it is. That is for English. Of German, French, Italian
and Spanish only left and right are known (`dusss_core.text.languages`): a sentence has a mirror image and no other
wordings. A picture whose sentence is in yet another language is not mirrored.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from dusss_core.seeds import derive_seed
from dusss_core.text.languages import is_told, language, may_mirror, mirrored, sides_in
from dusss_core.text.languages import word_set as _set


def wordings(sentence: str, count: int, seed_names: Iterable[object] = ()) -> list[str]:
    """`count` other wordings of `sentence`, the same for the same arguments.

    They differ from the sentence and from each other as far as the sentence allows; where nothing may be
    changed, the sentence itself is repeated.

    Args:
        seed_names: names that the random draws derive from, besides the sentence.
    """
    if language(sentence) != "en":
        return [sentence] * count
    found: list[str] = []
    for number in range(count):
        rng = random.Random(derive_seed("wording", *seed_names, sentence, number))
        drawn = (_reword(sentence, rng) for _ in range(_ATTEMPTS))
        # the last resort is a wording that has been: there may be no other
        new = (wording for wording in drawn if wording != sentence and wording not in found)
        found.append(next(new, found[0] if found else sentence))
    return found


def mirror(sentence: str) -> str:
    """The sentence of the left-right flipped picture: left and right exchanged, case kept.

    Exchanged are left and right, alone and in compounds (left-sided, leftward, leftmost, right-to-left), the lobes RUL,
    RML, RLL, LUL, LML, LLL, in small letters too, and so quadrants (RUQ) and zones (RUZ). Sides that only an
    abbreviation names (l., R, rt) are not: see `may_flip`. Applying it twice gives the sentence back. Other languages:
    `dusss_core.text.languages`.
    """
    tongue = language(sentence)
    return _SIDE.sub(_other_side, sentence) if tongue == "en" else mirrored(sentence, tongue)


def names_a_side(sentence: str) -> bool:
    """Whether `mirror` changes the sentence."""
    return bool(sides(sentence))


def sides(sentence: str) -> frozenset[str]:
    """Of "left" and "right" those that the sentence names, in any language with a list."""
    tongue = language(sentence)
    if tongue != "en":
        return sides_in(sentence, tongue)
    return frozenset("left" if match[0].lower() in ("left", "l") else "right" for match in _SIDE.finditer(sentence))


def names_a_place(sentence: str) -> bool:
    """Whether the sentence speaks of up, down, left, right or both sides: a turned picture contradicts it."""
    return _is_at_a_side(sentence) or any(word.lower() in _SPREADS for word in _WORD.findall(sentence))


def may_flip(sentence: str) -> bool:
    """Whether `mirror(sentence)` describes the flipped picture.

    False where a side hides in an abbreviation, in Latin or on a clock face, and in a language whose words for left and
    right are not known, or may not be (`language_is_told`).
    """
    tongue = language(sentence)
    known = _OPAQUE_SIDE.search(sentence) is None if tongue == "en" else may_mirror(sentence, tongue)
    return known and language_is_told(sentence)


def language_is_told(sentence: str) -> bool:
    """Whether some word tells the language: a side could be named in words that no list has."""
    tongue = language(sentence)
    return is_told(sentence, tongue) or (tongue == "en" and names_a_side(sentence))


def may_turn(sentence: str) -> bool:
    """Whether up-down flips and quarter turns of the picture leave the sentence true."""
    if language(sentence) != "en":
        return False  # words for above and below are known in English alone
    return may_flip(sentence) and not names_a_place(sentence)


def known_words() -> frozenset[str]:
    """Words that the lists of this module have, lower case."""
    synonyms = {
        word for table in (_SYNONYMS, _SYNONYMS_BEFORE_A_WORD) for key, row in table.items() for word in (key, *row)
    }
    lists = (
        _PLACES, _CENTRES, _SPREADS, _NEGATIONS, _LEANING_STARTS, _DROPPABLE, _COUNTED_WITH_ARTICLE, _ABBREVIATIONS,
        _COPULAS,
    )  # fmt: skip
    return frozenset.union(*lists) | synonyms | {"left", "right"}


# ---- vocabulary ----


_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_SIDE = re.compile(
    r"(?<![^\W_])(?:(?i:left|right)(?=(?i:wards?|most|sided|side|handed|hand)?(?![^\W_]))"
    r"|(?i:[lr](?=(?:[uml]l|[ul]q|[uml]z)(?![^\W_]))))"
)
_OPAQUE_SIDE = re.compile(
    r"(?<![^\W_])(?:[LR](?![^\W_]|-spine)|[lr]\.|(?i:rt|lt|o['’]?clock)(?![^\W_])"
    # "r lung", but "11 mg/l" and "r/o"; French lobes; Latin; "leftlung"
    r"|[lr](?=[ -](?:lung|lobe|upper|mid|lower|side|bas|ap[ei]|hil|pleur|zone|hemi))|L[IS][DG](?![^\W_])"
    r"|(?i:dextro(?!se)|la?evo(?!flox|thyr)|(?:left|right)(?=lung|upper|mid|lower)))"
)

_PLACES = _set(
    "upper lower middle mid top bottom up down above below over under beneath superior inferior apex "
    "apices apical base bases basal basilar bibasilar bibasal biapical corner corners edge edges zone "
    "zones quadrant quadrants lobe lobes lingula lingular north south east west northern southern "
    "eastern western horizontal vertical uppermost lowermost topmost upward upwards downward "
    "downwards medial lateral hilar hilum infrahilar suprahilar retrocardiac costophrenic paracardiac "
    "subdiaphragmatic diaphragm fissure half third"
)
# Nothing that turns with the picture, but a place.
_CENTRES = _set("centre centres center centers central centrally")
_SPREADS = _set("bilateral bilaterally unilateral unilaterally both-sided both either")
_NEGATIONS = _set(
    "no not without none never nor neither non absent absence negative free denies denied except "
    "excluding excluded unlikely cannot resolved unremarkable rather"
)
_REFERENCES = _set("it its this that these those they their them former latter same such respectively which whose")
# A clause that begins with one of these leans on the one before it.
_LEANING_STARTS = _REFERENCES | _set(
    "and or but nor yet so than then with within without in on at of to from for by as near over "
    "under except including excluding especially particularly mostly mainly predominantly primarily "
    "more most less least largely who where when while whereas although though however therefore "
    "otherwise also too still he she his her one ones another other others both each either neither "
    "there here again followed compared suggesting suggestive consistent representing probably "
    "possibly likely"
)

_ARTICLES = _set("a an the")
_COPULAS = _set("is are was were")
_PARTICIPLES = _set("seen noted identified observed visible visualized visualised found")
_DROPPABLE = _ARTICLES | _PARTICIPLES | _set("is are")
_COUNTED_WITH_ARTICLE = _set("few little lot third half quarter couple number single")
_BEHIND_AN_IDLE_PARTICIPLE = _set("in at within on involving")

# Only what means the same in any report; one-way where the other way may not.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "area": ("region",),
    "areas": ("regions",),
    "region": ("area",),
    "regions": ("areas",),
    "bilateral": ("both-sided",),
    "x-ray": ("radiograph",),
    "x-rays": ("radiographs",),
    "radiograph": ("x-ray",),
    "radiographs": ("x-rays",),
    "mostly": ("mainly", "predominantly"),
    "mainly": ("mostly", "predominantly"),
    "predominantly": ("mostly", "mainly"),
    "whole": ("entire",),
    "entire": ("whole",),
    "shows": ("demonstrates",),
    "demonstrates": ("shows",),
    "showed": ("demonstrated",),
    "distributed": ("spread",),
    "located": ("situated",),
    "situated": ("located",),
    "image": ("picture",),
    "picture": ("image",),
}
# "left lung" is no "left pulmonary": only this way round, and only before the noun that it describes.
_SYNONYMS_BEFORE_A_WORD: dict[str, tuple[str, ...]] = {"pulmonary": ("lung",)}

_ABBREVIATIONS = _set("dr mr mrs ms e.g i.e vs approx fig figs no nr st l r cf resp incl")
_ATTEMPTS = 8
_CHANCE = 0.5


# ---- rewording ----


def _reword(sentence: str, rng: random.Random) -> str:
    return _shuffle(_drop(_exchange(sentence, rng), rng), rng)


def _exchange(sentence: str, rng: random.Random) -> str:
    """Each word that has true synonyms is exchanged with an even chance; the article before it follows."""
    pieces: list[str] = []
    end = 0
    for match in _WORD.finditer(sentence):
        word, between = match.group(), sentence[end : match.start()]
        options = _SYNONYMS.get(word.lower(), ())
        if re.match(r" [^\W_]", sentence[match.end() :]):
            options += _SYNONYMS_BEFORE_A_WORD.get(word.lower(), ())
        if options and rng.random() < _CHANCE:
            # the capital of a mid-sentence "X-ray" belongs to the X alone
            model = word.lower() if word.startswith("X-") and end else word
            word = _cased_like(model, rng.choice(options))
            if between == " " and pieces[-1].lower() in ("a", "an"):
                pieces[-1] = pieces[-1][0] + ("n" if _begins_with_a_vowel(word) else "")
        pieces += [between, word]
        end = match.end()
    return "".join(pieces) + sentence[end:]


def _drop(sentence: str, rng: random.Random) -> str:
    """Each word that says nothing is left out with an even chance."""
    matches = list(_WORD.finditer(sentence))
    words = [match.group().lower() for match in matches]
    pieces: list[str] = []
    end = 0
    for place, match in enumerate(matches):
        pieces.append(sentence[end : match.start()])
        if _is_idle(sentence, match, words, place) and rng.random() < _CHANCE:
            pieces[-1] = pieces[-1].rstrip(" ")
        else:
            pieces.append(match.group())
        end = match.end()
    dropped = ("".join(pieces) + sentence[end:]).lstrip(" ")
    if dropped == sentence or not _WORD.search(dropped):
        return sentence
    return _upper_first(dropped) if sentence[:1].isupper() else dropped


def _is_idle(sentence: str, match: re.Match[str], words: list[str], place: int) -> bool:
    """Whether the word at `place` may be left out without saying something else."""
    word = words[place]
    previous = words[place - 1] if place else ""
    following = words[place + 1] if place + 1 < len(words) else ""
    if word not in _DROPPABLE or sentence[: match.start()].endswith("("):
        return False  # "(A)" is a panel
    if word in _ARTICLES:
        # "a few" is more than "few", and a capital inside a sentence is a name
        return following not in _COUNTED_WITH_ARTICLE and (place == 0 or match.group().islower())
    if word in _PARTICIPLES:
        # "is not seen", "seen previously", "clearly seen" say something; "is seen in the left lung" does not
        idle = previous in _COPULAS and following in _BEHIND_AN_IDLE_PARTICIPLE
        return idle and _NEGATIONS.isdisjoint(words)
    return previous != "there"


def _shuffle(sentence: str, rng: random.Random) -> str:
    """Statements, and the clauses of each, in another order, where none leans on another."""
    statements = _split_statements(sentence)
    ends = [end for _, end in statements]
    texts = [_shuffle_clauses(text, rng) for text, _ in statements]
    groups = _group_statements(texts)
    if rng.random() < _CHANCE:
        rng.shuffle(groups)
    reordered = [text for group in groups for text in group]
    if reordered != texts and texts[0][:1].isupper():
        starts = [True, *(not end.startswith(";") for end in ends[:-1])]
        reordered = [
            _upper_first(text) if start else _lower_first(text) for text, start in zip(reordered, starts, strict=True)
        ]
    return "".join(text + end for text, end in zip(reordered, ends, strict=True))


def _shuffle_clauses(statement: str, rng: random.Random) -> str:
    clauses = _independent_clauses(statement)
    if len(clauses) < 2 or rng.random() < _CHANCE / 2:
        return statement
    capitalised = statement[:1].isupper()
    clauses[0] = _lower_first(clauses[0])
    rng.shuffle(clauses)
    text = ", ".join(clauses)
    return _upper_first(text) if capitalised else text


def _independent_clauses(statement: str) -> list[str]:
    """The comma clauses of a telegraphic statement; those that lean on their predecessor are joined to it.

    One clause, so nothing to shuffle, where a comma may carry meaning: a negation or a reference reaches over
    it, two clauses name places (which finding is where?), there are brackets, a colon or an enumeration.
    """
    words = {word.lower() for word in _WORD.findall(statement)}
    if words & (_NEGATIONS | _REFERENCES) or re.search(r"[()\[\]:]|,(?! )", statement):
        return [statement]
    clauses: list[str] = []
    for clause in statement.split(", "):
        first = _first_word(clause)
        leans = first in _LEANING_STARTS or first.endswith("ing")
        if clauses and (leans or (_locates(first) and _locates(_last_word(clauses[-1])))):
            clauses[-1] += ", " + clause
        else:
            clauses.append(clause)
    if sum(map(_locates, clauses)) > 1 or not all(map(_first_word, clauses)):
        return [statement]
    return clauses


def _group_statements(texts: list[str]) -> list[list[str]]:
    """Statements that lean on the one before stay behind it: "It ...", or details of its place."""
    several_places = sum(map(_locates, texts)) > 1
    groups: list[list[str]] = []
    for text in texts:
        words = {word.lower() for word in _WORD.findall(text)}
        leans = not words or words & _REFERENCES or _first_word(text) in _LEANING_STARTS
        if groups and (leans or (several_places and not _locates(text))):
            groups[-1].append(text)
        else:
            groups.append([text])
    return groups


def _split_statements(sentence: str) -> list[tuple[str, str]]:
    """(statement, separator behind it) pairs, split at ";" and at full stops that end a sentence."""
    parts: list[tuple[str, str]] = []
    start = 0
    for match in re.finditer(r"[.;]\s+(?=\S)|[.;]?\s*$", sentence):
        before, after = sentence[start : match.start()], sentence[match.end() :]
        last = before.rpartition(" ")[2].lower().lstrip("(")
        open_bracket = before.count("(") > before.count(")")
        abbreviated = match.group().startswith(".") and (last in _ABBREVIATIONS or after[:1].islower())
        if before and not (after and (open_bracket or abbreviated)):
            parts.append((before, match.group()))
            start = match.end()
    return parts or [(sentence, "")]


# ---- words and letters ----


def _locates(text: str) -> bool:
    """Whether a side or a place is named, the centre among them."""
    return _is_at_a_side(text) or _names_one_of(_CENTRES, text)


def _is_at_a_side(text: str) -> bool:
    return names_a_side(text) or _names_one_of(_PLACES, text)


def _names_one_of(words: frozenset[str], text: str) -> bool:
    return not words.isdisjoint(re.findall(r"[^\W_]+", text.lower()))


def _first_word(text: str) -> str:
    match = _WORD.search(text)
    return match.group().lower() if match else ""


def _last_word(text: str) -> str:
    words = _WORD.findall(text)
    return words[-1].lower() if words else ""


def _other_side(match: re.Match[str]) -> str:
    word = match.group()
    return _cased_like(word, {"left": "right", "right": "left", "l": "r", "r": "l"}[word.lower()])


def _cased_like(model: str, word: str) -> str:
    if model.isupper():
        return word.upper()
    return _upper_first(word) if model[:1].isupper() else word


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower_first(text: str) -> str:
    """Lower case for the first letter, unless the first word is an abbreviation (X-ray, COVID-19, AP)."""
    first = _WORD.search(text)
    if first is None or first.group()[1:2] in ("", "-") or any(letter.isupper() for letter in first.group()[1:]):
        return text
    return text[:1].lower() + text[1:]


def _begins_with_a_vowel(word: str) -> bool:
    word = word.lower()
    return word.startswith("x-") or (word[:1] in "aeiou" and not word.startswith(("uni", "use", "one")))
