"""Which language a sentence is in, and its words for left and right.

Short sentences of reports, told by their commonest words. English, German, French, Italian and Spanish have words for
left and right; of other languages it is only known that they are others, and then no picture is mirrored.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

Language = Literal["en", "de", "fr", "it", "es", "other"]
NAMES = {"en": "English", "de": "German", "fr": "French", "it": "Italian", "es": "Spanish", "other": "another language"}


@lru_cache(maxsize=4096)
def language(sentence: str) -> Language:
    """The language whose words are in the sentence; English where nothing speaks of another.

    A sentence is in another language if more of its words are that language's than are English, or if no word is known
    and it has a letter that English lacks.
    """
    if sum(map(len, _FOREIGN_SCRIPT.findall(sentence))) >= 2:
        return "other"
    words = _WORD.findall(sentence.lower())
    counts = {name: sum(map(known.__contains__, words)) for name, known in _WORDS.items()}
    counts["de"] += len(_GERMAN_COMPOUND.findall(sentence))
    best = max(counts, key=counts.__getitem__)
    if not counts[best] and _FOREIGN_LETTER.search(sentence):
        return "other"
    return "en" if best == "en" or counts[best] <= counts["en"] else best if best in NAMES else "other"


def is_told(sentence: str, tongue: Language) -> bool:
    """Whether the words tell that the sentence is in `tongue`, or it is called so for want of another.

    English: by a word that is English alone. Another language: by two of its words, by one that names a side, or by
    one that is all there is. A language that is in no list has a word such as "la" or "infiltrat" in common with
    others, and its sides are not known.
    """
    words = [word for word in _WORD.findall(sentence.lower()) if len(word) > 1]
    if tongue == "en":
        return not words or not _ENGLISH_ALONE.isdisjoint(words)
    count = sum(map(_WORDS[tongue].__contains__, words)) if tongue in _WORDS else 0
    return count >= min(2, len(words)) or bool(sides_in(sentence, tongue))


_WORD = re.compile(r"(?<![\w-])[^\W\d_]+(?![\w-])")  # whole words: "Roux-en-Y" is not Spanish
_FOREIGN_SCRIPT = re.compile(r"[^\W\d_\u0000-\u024f\u0370-\u03ff]+|[\u0370-\u03ff]{3,}")  # one Greek letter is a symbol
_FOREIGN_LETTER = re.compile(r"[À-ÖØ-öø-ɏ]")
_GERMAN_COMPOUND = re.compile(r"(?<![^\W_])(?:links|rechts)(?:[^\W\d_]|-[^\W\d_])", re.I)  # linksbasal, rechts-basal


def word_set(words: str) -> frozenset[str]:
    """The words of a line."""
    return frozenset(words.split())


# Of the other languages no word that English reports use too ("in", "no", "as", "zone") unless it is in the English
# list, and none of a single letter. A word of two languages, such as "infiltrat", is in both lists: another decides.
_WORDS: dict[str, frozenset[str]] = {
    "en": word_set(
        "the of and is are was were with without there this that left right upper lower middle lung lungs lobe no not "
        "one two three area areas region infection infected opacity both in at an on seen shows normal small large "
        "picture image chest heart nodule mass"
    ),
    "de": word_set(
        "der das und ist sind mit ohne kein keine keinen nicht ein eine einer eines einem einen im auf bei von zur "
        "zum den dem des sich auch beide beider beidseits beidseitig beidseitige links rechts linke linken linker "
        "linkes linkem linksseitig linksseitige linksseitiger linksseitiges rechte rechten rechter rechtes rechtem "
        "rechtsseitig rechtsseitige rechtsseitiger rechtsseitiges lunge lungen lungenflügel lungenfeld oberlappen "
        "unterlappen mittellappen oberfeld unterfeld mittelfeld infektion infiltrat verschattung verschattungen "
        "befund unauffällig nachweis zwei drei vier oben unten oberen unteren herz pleuraerguss erguss bild"
    ),
    "fr": word_set(
        "le la les des du et est sont avec sans pas une dans au aux il elle cette ce gauche gauches droit droite "
        "droits droites poumon poumons pulmonaire pulmonaires supérieur supérieure inférieur inférieure deux trois "
        "opacité opacités épanchement cœur coeur normale aucun aucune bilatérale bilatéral infectée infectées sur "
        "infiltrat"
    ),
    "it": word_set(
        "il lo gli dei del della delle dello dell è sono con senza una uno nel nella nelle alla alle dal sinistra "
        "sinistro sinistri sinistre destra destro destri destre polmone polmoni polmonare polmonari superiore "
        "inferiore tre addensamento opacità versamento cuore nessuna nessun bilaterale infezione zona aree infetta "
        "infette lobo campo"
    ),
    "es": word_set(
        "el los las del es son con sin una uno en se hay izquierda izquierdo izquierdas izquierdos derecha derecho "
        "derechas derechos pulmón pulmon pulmones pulmonar pulmonares dos tres opacidad derrame corazón corazon "
        "ninguna ningún infección infeccion área áreas zona lóbulo campo"
    ),
    "pt": word_set(
        "da dos das é são com sem um uma na nos nas esquerdo esquerda direito direita pulmão pulmões não há dois "
        "duas lobo derrame coração infecção área áreas"
    ),
    "nl": word_set(
        "het een van en zonder niet geen zijn bij de linker linkerlong rechter rechterlong longen links rechts "
        "onderkwab bovenkwab twee drie hart beiderzijds"
    ),
    "pl": word_set(
        "na nie jest są oraz lewym lewe lewej lewego lewy lewa lewą lewostronny lewostronna lewostronne prawym prawe "
        "prawej prawego prawy prawa prawą prawostronny prawostronna prawostronne płuco płucu płuca płuc płucach bez"
    ),
    "tr": word_set("ve bir sol solda sağ sağda akciğer akciğerde alt üst yok var ile iki lob"),
    "sv": word_set(
        "och är utan inte ingen vänster vänstra vänstersidig vänstersidigt höger högra högersidig högersidigt lunga "
        "lungan lungor två av det den infiltrat infektion normal"
    ),
    "da": word_set(  # and Norwegian
        "og uden uten ikke ingen på den det venstre venstresidig venstresidigt venstresidige højre højresidig "
        "højresidigt højresidige høyre høyresidig høyresidige lunge lunger lungen lungene lungefelt begge nedre øvre "
        "fortætning fortetning infiltrat infektion normal"
    ),
    "hr": word_set(  # and Serbian, Slovene
        "lijevo lijeva lijevom lijevog lijevoj lijeve lijevi lijevu lijevostrano lijevostrani desno desna desnom "
        "desnog desnoj desne desni desnu desnem desnostrano desnostrani levo leva levom levog levoj levi levem "
        "levostrano pluća plućima plućnom plućno plućnog pljuča pljučih krilo krilu krila bez nije infiltrat"
    ),
    "cs": word_set(  # and Slovak
        "vlevo levé levá levý levém levou leve levem levostranný levostranná levostranné vpravo pravé pravá pravý "
        "pravém pravou prave pravem pravostranný pravostranná pravostranné vľavo ľavé ľavom ľavej ľavostranný pravom "
        "pravej plíce plíci plic plicní plicním plice plici křídlo křídle pľúca pľúc pľúcach bez není infiltrát"
    ),
    "ro": word_set(
        "stâng stânga stângă stângi stang stanga drept dreapta dreaptă drepte plămân plămânul plămânului plaman "
        "plamanul pulmonar pulmonară pulmonara și fără opacitate infiltrat normal"
    ),
    "hu": word_set(
        "jobb baloldali jobboldali oldali oldalon tüdő tüdőben tüdőfél tüdőfélben tüdőmező tudo tudoben nincs és alsó "
        "felső lebeny lebenyben"
    ),
    "fi": word_set(
        "vasen vasemman vasemmassa vasemmalla vasemmanpuoleinen oikea oikean oikeassa oikealla oikeanpuoleinen keuhko "
        "keuhkon keuhkossa keuhkot keuhkoissa tiivistymä sekä molemmissa alalohkossa ylälohkossa on"
    ),
    "id": word_set("kiri kanan paru pada dengan tidak terdapat konsolidasi infiltrat normal"),  # and Malay
    "ca": word_set(
        "esquerre esquerra esquerres dret dreta drets dretes pulmó pulmons pulmonar amb sense és els lòbul opacitat "
        "vessament infiltrat normal"
    ),
}

# Of the words that a sentence is counted by: not those that another language has too.
_ENGLISH_ALONE = _WORDS["en"] - word_set(
    "in at an on no are was one area region infection normal image mass"
) | word_set(
    "effusion effusions nodules masses lesions lesion finding findings disease thickening severe mild enlarged growth "
    "polyp polyps none clear unremarkable opacities infiltrate infiltrates haziness patchy dense density shadow "
    "shadows spot spots patch patches scattered cells tissue stained distributed evenly round dark bright rib ribs "
    "edema oedema cardiomegaly nodes study bilateral field fields found"
)


class _Sides:
    """Words that change places when a picture is mirrored."""

    def __init__(self, left: str, right: str, opaque: str):
        self.pairs = tuple(zip(left.split(), right.split(), strict=True))
        both = dict(self.pairs) | {b: a for a, b in self.pairs}
        self.other = both
        self.lefts, self.rights = word_set(left), word_set(right)
        longest = sorted(both, key=len, reverse=True)
        self.pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(longest)})(?![^\W_])", re.I)
        self.opaque = re.compile(f"{_OPAQUE}|{opaque}", re.I)


_ENDINGS = ("e", "en", "er", "es", "em")
_COMPOUNDS = (
    "seitig", "betont", "thorakal", "basal", "apikal", "lateral", "hilär", "zentral", "ventral", "dorsal", "konvex",
)  # fmt: skip
_DE = [f"{{}}{end}" for end in _ENDINGS] + ["{}s", "{}sseits"]
_DE += [f"{{}}s{compound}{end}" for compound in _COMPOUNDS for end in ("", *_ENDINGS)]
# Lobes, quadrants and zones as English names them, and sides of one letter, stand in every language's reports.
_OPAQUE = r"(?<![^\W_])(?<!/)(?:[lr](?:[uml]l|[ul]q|[uml]z)|(?-i:[LR])(?!['’]))(?![^\W_])"
SIDES: dict[str, _Sides] = {
    "de": _Sides(
        " ".join(form.format("link") for form in _DE),
        " ".join(form.format("recht") for form in _DE),
        rf"(?<![^\W_])(?:li|re|lat|bds)\.|(?<![^\W_])(?:li|re|[lr]ol)(?![^\W_])|\w(?:links|rechts)\b|uhr\b"
        r"|\b(?:links|rechts|linke|rechte)\w*-"
        # a compound that is not in the list
        rf"|(?<![^\W_])(?:links|rechts)(?!(?:seits|(?:{'|'.join(_COMPOUNDS)})(?:{'|'.join(_ENDINGS)})?)(?![^\W_]))[^\W_]",
    ),
    "it": _Sides(
        "sinistro sinistra sinistri sinistre",
        "destro destra destri destre",
        r"(?<![^\W_])(?:sx|dx|sn|sin|des|lsd|lss|lid|lis|lm)(?![^\W_])",
    ),
    "es": _Sides(
        "izquierdo izquierda izquierdos izquierdas",
        "derecho derecha derechos derechas",
        r"(?<![^\W_])(?:izq|der|dcho|dcha|izqdo|izqda|li|ld|lii|lid|lsi|lsd|lm)(?![^\W_])",
    ),
    # droit and droite are one word in "gauche": nouns tell which, see `_french`
    "fr": _Sides("gauche gauches", "droit droits", r"(?<![^\W_])(?:gche|dte|dt|g|d|lsd|lsg|lid|lig|lm)(?![^\W_'’])"),
}
_FRENCH = re.compile(r"(?<![^\W_])(gauches?|droites?|droits?)(?![^\W_])", re.I)
_MASCULINE = word_set(
    "poumon poumons lobe lobes champ champs hémithorax hemithorax côté cote apex hile hiles sommet sommets cul-de-sac "
    "bord quadrant quadrants sinus supérieur inférieur moyen pulmonaire coin infiltrat épanchement pleural nodule"
)
_FEMININE = word_set(
    "base bases plage plages zone zones région régions partie parties moitié cavité opacité opacités image coupole "
    "plèvre à a infection infections lésion lésions basale apicale supérieure inférieure moyenne lingula"
)


def sides_in(sentence: str, tongue: Language) -> frozenset[str]:
    """Of "left" and "right" those that the words of a language other than English name."""
    if tongue == "fr":
        words = [match[0].lower() for match in _FRENCH.finditer(sentence)]
        return frozenset("left" if word.startswith("gauche") else "right" for word in words)
    if tongue not in SIDES:
        return frozenset()
    sides = SIDES[tongue]
    words = [match[0].lower() for match in sides.pattern.finditer(sentence)]
    return frozenset("left" if word in sides.lefts else "right" for word in words)


def mirrored(sentence: str, tongue: Language) -> str:
    """The sentence with left and right exchanged, case kept; as it is in a language without a list."""
    if tongue == "fr":
        return _FRENCH.sub(lambda match: _like(match[0], _french(sentence, match) or match[0]), sentence)
    if tongue not in SIDES:
        return sentence
    sides = SIDES[tongue]
    return sides.pattern.sub(lambda match: _like(match[0], sides.other[match[0].lower()]), sentence)


def may_mirror(sentence: str, tongue: Language) -> bool:
    """Whether `mirrored` says what the mirrored picture shows: the language has a list, no side hides in an
    abbreviation, and in French the noun tells whether right is droit or droite."""
    if tongue not in SIDES or SIDES[tongue].opaque.search(sentence):
        return False
    return tongue != "fr" or all(_french(sentence, match) for match in _FRENCH.finditer(sentence))


def _french(sentence: str, match: re.Match[str]) -> str | None:
    """The other side's word; None where the gender of "gauche" is not known from the word before it."""
    word = match[0].lower()
    before = re.findall(r"[\w-]+", sentence[: match.start()].lower())
    noun = before[-1] if before else ""
    feminine = noun in _FEMININE
    if not feminine and noun not in _MASCULINE:
        return None
    plural = "s" if word.endswith("s") else ""
    if word.startswith("gauche"):
        return ("droite" if feminine else "droit") + plural
    # the way back must give the same word
    return "gauche" + plural if feminine == word.startswith("droite") else None


def _like(model: str, word: str) -> str:
    if model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
