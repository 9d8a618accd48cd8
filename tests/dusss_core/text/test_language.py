"""Sentences in other languages are told from English, so that no picture is mirrored against its sentence."""

import pytest

from dusss_core.privacy.public import public_captions
from dusss_core.text.language import is_english
from dusss_core.text.standard import made_up_sentences
from dusss_core.text.wording import may_flip, may_turn, wordings


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
def test_a_sentence_in_another_language_is_neither_mirrored_nor_reworded(sentence):
    assert not is_english(sentence)
    assert not may_flip(sentence) and not may_turn(sentence)
    assert wordings(sentence, 3) == [sentence] * 3


@pytest.mark.parametrize(
    "sentence",
    [
        "Bilateral pulmonary infection, two infected areas, upper left lung and upper right lung.",
        "Pneumonia.",
        "En bloc resection of the left lobe.",
        "3 µm sections, β-catenin positive, de novo lesion of the right side.",
        "Grade I glioma, Roux-en-Y",
        "",
    ],
)
def test_english_stays_english(sentence):
    assert is_english(sentence)


def test_all_public_sentences_are_english():
    assert all(map(is_english, [*made_up_sentences(), *public_captions()]))
