"""Token features are standardised with public constants, so that a word's difference is not lost in what all share."""

from __future__ import annotations

import torch

from dusss_core.config import TextConfig, TrainingConfig
from dusss_core.text.bank import build_text_bank
from dusss_core.text.standard import made_up_sentences

LEFT, RIGHT = "one infected area, lower left lung.", "one infected area, lower right lung."


def sentence_vectors(sentences, **settings) -> torch.Tensor:
    bank = build_text_bank(sentences, TextConfig(views=1, **settings), augmented=False)
    tokens, mask = bank.features(torch.arange(len(sentences)))
    return torch.nn.functional.normalize((tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)


def test_sentences_that_differ_in_a_side_are_less_parallel_than_the_encoder_has_them():
    raw = sentence_vectors([LEFT, RIGHT], standardise=False)
    own = sentence_vectors([LEFT, RIGHT])
    assert 1 - own[0] @ own[1] > 2 * (1 - raw[0] @ raw[1])


def test_a_sentence_has_the_same_features_whatever_other_sentences_its_site_has():
    alone = sentence_vectors([LEFT])
    beside = sentence_vectors([LEFT, "nothing to be seen", *made_up_sentences()[:3]])
    torch.testing.assert_close(alone[0], beside[0], atol=2e-3, rtol=0)


def test_every_part_of_the_made_up_sentences_is_said():
    said = " ".join(made_up_sentences())
    assert all(word in said for word in ("left", "right", "upper", "lower", "both", "Bilateral", "polyp", "two", "no "))


def test_the_paper_takes_features_as_they_are_also_where_the_text_is_set():
    values = {"method": {"preset": "paper"}, "vlm": {"text": {"views": 1}}}
    text = TrainingConfig.model_validate(values).vlm.text
    assert (text.standardise, text.views) == (False, 1)
    values["vlm"]["text"]["standardise"] = True
    assert TrainingConfig.model_validate(values).vlm.text.standardise
