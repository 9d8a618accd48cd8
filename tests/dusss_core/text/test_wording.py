"""Other wordings keep the finding; mirroring is an involution and follows the flipped picture."""

import re
from collections import Counter

import pytest

from dusss_core.config import TextConfig
from dusss_core.text.bank import build_text_bank
from dusss_core.text.languages import language
from dusss_core.text.wording import may_flip, may_turn, mirror, names_a_place, names_a_side, wordings

SENTENCES = [
    "bilateral pulmonary infection, two infected areas, lower left lung and upper middle right lung.",
    "unilateral pulmonary infection, one infected area, all right lung.",
    "bilateral pulmonary infection, three infected areas, upper lower left lung and middle lower right lung.",
    "The nuclei density in the upper right is high.",
    "The nuclei are evenly distributed.",
    "Fluorescence microscopy, 10 nuclei, sparse, mostly in the lower left and lower right.",
    "Stained tissue, 102 nuclei, moderately dense, spread over the whole field.",
    "There is no consolidation in the left lung, the right lower lobe shows an opacity.",
    "No pleural effusion, consolidation or collapse. A small nodule is seen in the right upper zone.",
    "A round opacity is seen in the left lung; the right lung is clear.",
    "Left lung is normal. Right lung: patchy consolidation, basal.",
    "Left lung nodule. Small. Right lung mass. Large.",
    "Bilateral ground-glass opacities, more prominent in the right upper lobe.",
    "Consolidations in left middle, lower right and upper right zones.",
    "mild opacities in the superior,middle and lower right lobes were depicted",
    "Chest x-ray (A) shows a few faint areas, CT scan (B) shows none.",
    "A LEFT-SIDED EFFUSION, SMALL, BASAL.",
    "Finding: the bright spot in the top left corner, 3 others are not abnormal.",
    "Three bright spots, the abnormal one is in the bottom right quadrant.",
    "Dense area, upper left.",
    "Opacity is not seen in the right lung, effusion absent.",
    "AP chest X-ray. This demonstrated a normal heart without effusion. However, the left base is hazy.",
    "RUL collapse, LLL consolidation.",
    "Nodule of 1.5 cm, left apex, without cavitation.",
    "Cardiomegaly, pulmonary oedema, both bases, right more than left.",
    "an area of 2.5 x 3 cm is noted in the left lower lobe; no others.",
    "a leftward shift of the trachea, right-to-left",
    "lungs clear",
    "Infiltrate",
    "",
]
KEPT = re.compile(
    r"\b(left|right|upper|lower|middle|superior|basal|bases?|apex|top|bottom|corner|quadrant|lobes?|zones?|"
    r"no|not|none|without|absent|clear|normal|abnormal|one|two|three|few|[0-9.]*[0-9]|rul|lll|"
    r"infection|infected|nuclei|opacit(?:y|ies)|consolidations?|effusion|nodule|mass|collapse|density|shift|spots?|"
    r"small|large|bright|high|evenly|sparse|dense|all|both(?!-sided)|more|less|others?)\b"
)


def _kept(sentence: str) -> Counter:
    return Counter(KEPT.findall(sentence.lower()))


@pytest.mark.parametrize("sentence", SENTENCES)
def test_wordings_keep_every_side_place_number_negation_and_finding(sentence):
    for wording in wordings(sentence, 20):
        assert _kept(wording) == _kept(sentence)
        assert names_a_side(wording) == names_a_side(sentence)
        assert names_a_place(wording) == names_a_place(sentence)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_places_stay_beside_their_sides(sentence):
    """What stands directly before a side or a place ("lower left", "no effusion") is not torn off."""
    pairs = re.compile(r"\b(upper|lower|middle|no|not|without|two|three) (\w+)")
    for wording in wordings(sentence, 20):
        expected = pairs.findall(sentence.lower().replace("area", "region"))
        assert sorted(pairs.findall(wording.lower().replace("area", "region"))) == sorted(expected)


@pytest.mark.parametrize(
    "sentence",
    [
        "No effusion, consolidation, collapse",  # the negation reaches over the commas
        "nodule in the left lung, large, mass in the right lung, small",  # which is large?
        "opacity in the upper, middle, lower right zones",
    ],
)
def test_commas_that_carry_meaning_are_left_alone(sentence):
    plain = re.sub(r"\b(in the)\b", "in", sentence)
    assert {re.sub(r"\b(in the)\b", "in", wording) for wording in wordings(sentence, 30)} == {plain}


def test_a_detail_stays_behind_the_finding_it_belongs_to():
    for wording in wordings("Left lung nodule. Small. Right lung mass. Large.", 20):
        assert "Left lung nodule. Small." in wording
        assert "Right lung mass. Large." in wording


def test_wordings_repeat_and_differ():
    sentence = SENTENCES[0]
    views = wordings(sentence, 5, ("study", 1))
    assert views == wordings(sentence, 5, ("study", 1))
    assert len({sentence, *views}) == 6
    assert views[:3] == wordings(sentence, 3, ("study", 1))
    assert views != wordings(sentence, 5, ("study", 2))


def test_a_sentence_without_another_wording_is_repeated():
    assert wordings("Infiltrate", 3) == ["Infiltrate"] * 3
    assert wordings("", 2) == ["", ""]


@pytest.mark.parametrize(
    ("sentence", "mirrored"),
    [
        (
            "two infected areas, lower left lung and all right lung.",
            "two infected areas, lower right lung and all left lung.",
        ),
        ("Left-sided, RIGHT, leftmost", "Right-sided, LEFT, rightmost"),
        ("leftward shift, right-to-left, the left's", "rightward shift, left-to-right, the right's"),
        ("RUL and LLL, not lull", "LUL and RLL, not lull"),
        ("rll consolidation, Lul and rml clear", "lll consolidation, Rul and lml clear"),
        ("Clips in the RUQ, LLQ; LUZ and RMZ opacity", "Clips in the LUQ, RLQ; RUZ and LMZ opacity"),
        ("bright leftover upright copyright", "bright leftover upright copyright"),
    ],
)
def test_mirror_exchanges_left_and_right(sentence, mirrored):
    assert mirror(sentence) == mirrored


@pytest.mark.parametrize("sentence", SENTENCES)
def test_mirror_twice_gives_the_sentence_back(sentence):
    assert mirror(mirror(sentence)) == sentence
    assert (mirror(sentence) != sentence) == names_a_side(sentence)


def test_what_may_be_flipped_and_turned():
    assert may_turn("The nuclei are evenly distributed.")
    assert may_flip(SENTENCES[0]) and not may_turn(SENTENCES[0])
    assert not may_turn("dense in the upper zone")
    assert not may_turn("bilateral infection")
    for hidden in (
        "opacity in the l. lung",
        "Rt lower lobe",
        "mass at 3 o'clock",
        "effusion (R)",
        "r lung opacity",
        "l-sided effusion",
        "Mild dextroscoliosis of the spine.",
        "Levocardia",
        "leftlung opacity",
        "Condensation LSD",
    ):
        assert not may_flip(hidden)
        assert not may_turn(hidden)
    assert may_flip("C-reactive protein of 11 mg/l, r/o pneumonia, dextrose given") and not may_turn("clips in the rul")
    assert may_flip("Fluorescence, right, all lungs.")


ENDOSCOPY = [
    # six hospitals' ways to say how many, how large and where
    ("One polyp, small, upper left.", "One polyp, small, upper right."),
    ("Single polyp, large size, middle right of the picture.", "Single polyp, large size, middle left of the picture."),
    (
        "Three or more polyps, largest medium, lower left, centre and middle right.",
        "Three or more polyps, largest medium, lower right, centre and middle left.",
    ),
    ("The frame shows one large lesion at the right side.", "The frame shows one large lesion at the left side."),
    (
        "The frame shows two lesions, a small one at the top left and a large one at the bottom centre.",
        "The frame shows two lesions, a small one at the top right and a large one at the bottom centre.",
    ),
    ("Polyp finding: one, medium, left upper field.", "Polyp finding: one, medium, right upper field."),
    (
        "Finding positive, one polyp of small size, right middle field.",
        "Finding positive, one polyp of small size, left middle field.",
    ),
    (
        "In this video frame a small polyp can be seen in the left middle part.",
        "In this video frame a small polyp can be seen in the right middle part.",
    ),
    ("A solitary big polyp is identified, right side.", "A solitary big polyp is identified, left side."),
    (
        "One polyp is identified towards the bottom right; it is big.",
        "One polyp is identified towards the bottom left; it is big.",
    ),
    (
        "Growths detected, number two, big in the lower left side, small in the upper mid area.",
        "Growths detected, number two, big in the lower right side, small in the upper mid area.",
    ),
    (
        "Colonoscopy picture, wide frame, black border left, green inset, sharp.",
        "Colonoscopy picture, wide frame, black border right, green inset, sharp.",
    ),
]
PLACES = re.compile(
    r"\b(?:left|right|upper|lower|top|bottom|middle|mid|cent(?:re|ral)|side|field|small|medium|large|largest|big|"
    r"one|two|three|more|no|polyps?|lesions?|growths?)\b"
)


@pytest.mark.parametrize(("sentence", "mirrored"), ENDOSCOPY)
def test_sentences_of_endoscopy_are_mirrored_and_never_turned(sentence, mirrored):
    assert may_flip(sentence) and (mirror(sentence), mirror(mirrored)) == (mirrored, sentence)
    assert not may_turn(sentence) and not may_turn(mirrored)


@pytest.mark.parametrize("sentence", [sentence for sentence, _ in ENDOSCOPY])
def test_other_wordings_of_endoscopy_keep_number_size_and_place(sentence):
    for wording in wordings(sentence, 8):
        assert Counter(PLACES.findall(wording.lower())) == Counter(PLACES.findall(sentence.lower())), wording


@pytest.mark.parametrize(
    "sentence",
    [
        "One polyp, medium, upper centre.",
        "Polyp finding: one, small, central lower field.",
        "Video frame with a single small polyp in the lower middle part of the view.",
        "One large polypoid lesion is seen at the top centre.",
    ],
)
def test_what_lies_above_or_below_is_not_turned_and_needs_no_mirror(sentence):
    assert may_flip(sentence) and not may_turn(sentence) and not names_a_side(sentence)


@pytest.mark.parametrize(
    "sentence", ["One polyp, large, centre.", "Finding negative, zero polyps.", "Video frame without polyp."]
)
def test_the_centre_stays_where_it_is_in_a_turned_picture(sentence):
    assert may_turn(sentence)


def test_a_list_of_places_with_the_centre_is_not_torn_apart():
    sentence = "Polyps three or more, the largest small, centre, middle left and lower centre."
    assert all("centre, middle left and lower centre" in wording.lower() for wording in wordings(sentence, 16))


OTHERS = [
    (
        "de",
        "Infiltrat im linken Oberlappen, rechts unauffällig.",
        "Infiltrat im rechten Oberlappen, links unauffällig.",
    ),
    ("de", "Linksseitiger Pleuraerguss, kein Infiltrat", "Rechtsseitiger Pleuraerguss, kein Infiltrat"),
    ("de", "Verschattung der rechten Lunge", "Verschattung der linken Lunge"),
    ("de", "Linksbasale Konsolidierung", "Rechtsbasale Konsolidierung"),
    ("de", "Verschattung rechtsbasal, linksapikale Narbe", "Verschattung linksbasal, rechtsapikale Narbe"),
    ("de", "Linksbetonte, rechtsthorakale Infiltrate", "Rechtsbetonte, linksthorakale Infiltrate"),
    ("de", "Linkskonvexer Verlauf", "Rechtskonvexer Verlauf"),
    ("de", "Infiltrat linksseits", "Infiltrat rechtsseits"),
    ("fr", "Opacité du poumon gauche", "Opacité du poumon droit"),
    ("fr", "Zone infectée, base droite", "Zone infectée, base gauche"),
    ("fr", "Épanchement pleural à gauche", "Épanchement pleural à droite"),
    ("it", "Area infetta nel polmone sinistro", "Area infetta nel polmone destro"),
    ("it", "Addensamento a destra, campo superiore", "Addensamento a sinistra, campo superiore"),
    ("es", "Opacidad en el lóbulo inferior izquierdo", "Opacidad en el lóbulo inferior derecho"),
    ("es", "Derrame en la base derecha", "Derrame en la base izquierda"),
]


@pytest.mark.parametrize(("tongue", "sentence", "other"), OTHERS)
def test_left_and_right_are_exchanged_in_german_french_italian_and_spanish(tongue, sentence, other):
    assert language(sentence) == tongue
    assert may_flip(sentence)
    assert names_a_side(sentence)
    assert mirror(sentence) == other
    assert mirror(other) == sentence
    assert wordings(sentence, 3) == [sentence] * 3
    assert not may_turn(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "Infecção no pulmão esquerdo.",
        "Инфекция левого легкого",
        "左肺感染",
        "zakażenie w lewym płucu",
        "Consolidation gauche.",  # droit or droite?
        "Infiltrat im Oberlappen li. mit Erguss",
        "Addensamento del polmone sx",
        "Linksherzvergrößerung",
        "Kleine rechtsparakardiale Verschattung",
        "Rechts-basal Konsolidierung",
        "Infiltrat im RUL",
        "Verschattung im rol",
        "Verschattung R > L",
        "Opacité du LSD",
        "Infiltrat du LIG, pas d'épanchement.",
        "Addensamento al LID",
        "Opacidad en LM del pulmón",
        "Infiltrat i venstre lunge.",
        "Normal højre lunge",
        "Infiltrat i høyre lunge.",
        "Infiltrat, vänster.",
        "Infiltrat u lijevom plućnom krilu.",
        "Infiltrat desno.",
        "Infiltrát v levé plíci.",
        "Zastineni vlevo, plice bez nalezu",
        "Opacitate în plămânul stâng.",
        "Infiltrat pulmonar drept",
        "Konszolidáció a bal tüdőben.",
        "Tiivistymä on vasemmassa keuhkossa.",
        "Konsolidasi di paru kiri.",
        "Opacitat al pulmó esquerre.",
        "Þétting í vinstra lunga",  # no list has a word of it
    ],
)
def test_what_can_not_be_mirrored_in_words_is_not_mirrored(sentence):
    assert not may_flip(sentence)
    assert mirror(mirror(sentence)) == sentence


@pytest.mark.parametrize("beginning", ["links", "rechts"])
@pytest.mark.parametrize("ending", ["basal", "apikale", "seitigem", "pulmonal", "ventrikulär", "parakardiale"])
def test_a_german_compound_of_a_side_is_exchanged_or_its_picture_is_not_mirrored(beginning, ending):
    sentence = f"Kleine {beginning}{ending} Verschattung"
    assert may_flip(sentence) == (mirror(sentence) != sentence)


def test_one_word_of_many_languages_does_not_outweigh_a_side():
    assert language("Infiltrat gauche") == "fr" and language("Infiltrat im Oberfeld") == "de"


@pytest.mark.parametrize("sentence", SENTENCES)
def test_english_is_known_as_english(sentence):
    assert language(sentence) == "en"


def test_training_warns_where_flips_are_switched_off():
    with pytest.warns(UserWarning, match="1 of 2 different sentences are in a language without word lists"):
        build_text_bank(("left lung", "Инфекция левого легкого"), TextConfig(), augmented=False)
