"""Sentences in other languages are told from English."""

import pytest

from dusss_core.privacy.public import public_captions
from dusss_core.text.languages import language
from dusss_core.text.standard import made_up_sentences
from dusss_core.text.wording import may_flip, may_turn, mirror, wordings


@pytest.mark.parametrize(
    "sentence",
    [
        "Infección en el pulmón izquierdo.",
        "Infiltrat im linken Unterlappen.",
        "Verschattung rechts basal",
        "Opacité du poumon gauche, sans épanchement.",
        "Consolidamento basale sinistro",
        "Opacidade no pulmão direito.",
        "Zmiana w płucu lewym",
        "Затемнение в левом лёгком",
        "左肺有阴影",
        "Derrame en el seno de la base.",
    ],
)
def test_a_sentence_in_another_language_is_told_and_not_reworded(sentence):
    assert language(sentence) != "en"
    assert not may_turn(sentence) and mirror(mirror(sentence)) == sentence
    assert wordings(sentence, 3) == [sentence] * 3


@pytest.mark.parametrize(
    "sentence",
    [
        "Bilateral pulmonary infection, two infected areas, upper left lung and upper right lung.",
        "Pneumonia.",
        "En bloc resection of the left lobe.",
        "3 µm sections, β-catenin positive, de novo lesion of the right side.",
        "Grade I glioma, Roux-en-Y",
        "polyp in the middle",
        "Sjögren syndrome with cysts in both lungs",
        "β-catenin positive",
        "Naïve polyp, large",
        "",
    ],
)
def test_english_stays_english(sentence):
    assert language(sentence) == "en"


def test_all_public_sentences_are_english():
    assert {language(sentence) for sentence in [*made_up_sentences(), *public_captions()]} == {"en"}


@pytest.mark.parametrize(
    "sentence",
    [
        "Infiltraat vasakul kopsus",  # Estonian
        "Infiltratas kaireje plauciuose",  # Lithuanian
        "Infiltraat in die linkerlong",  # Afrikaans
        "Maambukizi kwenye pafu la kushoto",  # Swahili
        "Infiltrat v levih plucih",  # Slovene
        "Infiltrat ne mushkerine e majte",  # Albanian
        "Infiltratua ezkerreko birikan",  # Basque
        "zatemnenie sleva",  # Russian
        "ton thuong phoi trai",  # Vietnamese
        "enfeksyon nan poumon goch",  # Haitian
    ],
)
def test_a_picture_whose_sentence_may_name_a_side_in_an_unknown_language_is_not_mirrored(sentence):
    assert not may_flip(sentence) and not may_turn(sentence)


@pytest.mark.parametrize(
    "sentence",
    ["RLL consolidation", "Severe ARDS.", "Polyps none.", "", "2 x 3", "Unauffällig", "Kein Erguss.", "gauche", "links",
     "Poumon gauche", "Pleural effusion.", "Verdichtung links"],
)  # fmt: skip
def test_a_sentence_of_few_words_that_tell_its_language_goes_with_a_mirrored_picture(sentence):
    assert may_flip(sentence) == (sentence != "gauche")  # droit or droite?
