"""Whether a sentence is in English, as far as a few words tell.

What is done with sentences rests on English words: left and right are exchanged for a mirrored picture, words that say
nothing are dropped. A sentence in another language is used as it is, and its picture is not mirrored: it may name a
side that would then be the wrong one.
"""

from __future__ import annotations

import re


def word_set(words: str) -> frozenset[str]:
    """The words of a line."""
    return frozenset(words.split())


_LETTERS = re.compile(r"[^\W\d_]+")
_SIDES = re.compile(
    r"izquierd\w+|derech[oa]s?|gauches?|droite?s?|links\w*|linke[rnms]?|rechts\w*|rechte[rnms]?|sinistr[oaie]|destr[oaie]|"
    r"esquerd[oa]s?|direit[oa]s?|lew(?:y|a|e|ego|ej|ym)|praw(?:y|a|e|ego|ej|ym)|vänstra?|högra?|vänster|höger|venstre|"
    r"høyre|højre|sağ\w*|stâng\w*|drept\w*"
)
_OTHERS = word_set(
    "el la los las del de en con sin un una le les des du dans avec sans et une der die das und im ist mit ohne eine "
    "einer beiden il lo gli nel nella di da della os dos na em com sem het een van met zonder beide och med utan bez"
)
_ENGLISH = word_set(
    "the of in and is are was were with without no not at on there an a to for from by both left right upper lower one "
    "two three area areas lung lungs"
)


def is_english(sentence: str) -> bool:
    """False where a sentence has a word of other letters, a word for a side in another language, or more small words of
    another language than of English. A sentence of few words that tell neither counts as English."""
    words = [word.lower() for word in _LETTERS.findall(sentence)]
    if any((len(word) > 1 and not _is_latin(word)) or _SIDES.fullmatch(word) for word in words):
        return False
    others = sum(word in _OTHERS for word in words)
    # one may stand in a name: "en bloc", "de novo"
    return others < 2 or others <= sum(word in _ENGLISH for word in words)


def _is_latin(word: str) -> bool:
    # up to the end of the Latin letters with and without marks; a single Greek letter is a unit or a name
    return all(letter < "\u0250" or "\u1e00" <= letter < "\u1f00" for letter in word)
