"""The audit of step 1 tells a model that listens from one that does not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import heart
from dusss_core.build import build_vlm
from tests.dusss_core.conftest import SENTENCES, FakeBank, make_config, make_split

BOTH = "infected areas in the left and the right lung."


@pytest.mark.parametrize(("sentence", "side"), [*zip(SENTENCES, ("left", "right"), strict=True), (BOTH, "both")])
def test_the_side_that_a_sentence_names(sentence, side):
    assert heart.side_of(sentence) == side
    assert heart.side_of("a nodule at the centre") == "both"


def split_of(sentence, sentences=(*SENTENCES, BOTH)):
    return replace(make_split(n=len(sentence)), sentence=np.array(sentence), sentences=sentences)


def test_who_knows_each_sentence_ranks_it_first_and_who_knows_none_has_one_half():
    split = split_of([0, 0, 0, 0, 1, 2])
    knows = heart.retrieval(np.eye(3)[split.sentence], split, {})
    assert (knows["rank"], knows["left_or_right"], knows["side_balanced"]) == (0, 1, 1)
    nothing = heart.retrieval(np.zeros((6, 3)), split, {})
    assert nothing["rank"] == 0.5
    # the commonest sentence first, for every picture: over pictures that would be 1/4, over sentences it is nothing
    popular = heart.retrieval(np.zeros((6, 3)), split, dict(zip(split.sentences, (4, 1, 1), strict=True)))
    assert popular["rank_by_popularity"] == pytest.approx((0 + 0.75 + 0.75) / 3)


def test_sentences_that_the_split_lacks_take_no_part():
    split = split_of([0, 1])
    similarity = np.array([[0.5, 0.1, 0.9], [0.1, 0.5, 0.9]])
    assert heart.retrieval(similarity, split, {})["rank"] == 0


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mask_on_the_other_side_is_not_on_the_named_one(monkeypatch, mirrored):
    split = make_split(n=8)
    truth = np.asarray(split.masks)[:, None] * 20.0 - 10
    shown = truth[..., ::-1] if mirrored else truth
    monkeypatch.setattr("dusss_core.training.evaluation.ground_split", lambda *_: shown.astype(np.float16))
    config = make_config()
    figures = heart.masks(config, build_vlm(config), split, FakeBank())
    assert figures["truth_on_named_side"] == 1
    assert figures["on_named_side"] == (0 if mirrored else 1)
    assert (figures["dice"] == pytest.approx(1)) != mirrored


def pairs_of(d_sss, uncertainty=None, logits=None):
    nothing = np.zeros_like(d_sss)
    logits = nothing if logits is None else logits
    return heart.Pairs(logits, d_sss, nothing if uncertainty is None else uncertainty, logits)


def test_the_number_of_records_is_told_by_the_sign_of_the_rank_correlation():
    split = split_of([0, 1, 2])
    counts = dict(zip(split.sentences, (1, 5, 9), strict=True))
    d_sss = np.array([[0.9, 0.5, 0.5], [0.5, 0.6, 0.5], [0.5, 0.5, 0.1]])
    figures = heart.uncertainty(pairs_of(d_sss), split, counts)
    assert figures["rank_correlation_with_records"] == pytest.approx(-1)
    constant = heart.uncertainty(pairs_of(np.full((3, 3), 0.5)), split, counts)
    assert (constant["spread_within_row"], constant["rank_correlation_with_records"]) == (0, None)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_uncertainty_that_grows_with_the_sentences_that_fit_knows_ambiguity(sign):
    split = split_of([0, 1, 2])
    # one sentence fits the first picture, two the second, three the third
    logits = np.array([[9.0, 0, 0], [9, 9, 0], [9, 9, 9]])
    uncertainty = sign * np.array([[1.0, 0, 0], [0, 2, 0], [0, 0, 3]])
    figures = heart.uncertainty(pairs_of(np.full((3, 3), 0.5), uncertainty, logits), split, {})
    assert figures["rank_correlation_with_ambiguity"] == pytest.approx(sign)


@pytest.mark.parametrize("cells_read", [None, 0.0])
def test_all_figures_of_a_model_are_numbers(cells_read):
    torch.manual_seed(0)
    config = make_config(vlm={**make_config().vlm.model_dump(), "cells": 3, "cells_read": cells_read})
    figures = heart.measure(config, build_vlm(config), make_split(n=8), FakeBank(), dict.fromkeys(SENTENCES, 4))
    cosine = figures["sss"]["gradient_cosine"]
    assert cosine is None if cells_read == 0 else -1 <= cosine <= 1
    assert set(json.loads(json.dumps(figures, allow_nan=False))) == {"pictures", "retrieval", "masks", "sss"}
