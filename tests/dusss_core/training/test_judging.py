"""Text-guided masks weigh less at a site where they lose on its validation pictures, and what they weigh is kept."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dusss_core.config import MethodConfig
from dusss_core.files import digest_of_tensors
from dusss_core.losses import semi_supervised_loss
from dusss_core.phases import Phase
from dusss_core.training import Segmenter, initial_shared
from dusss_core.training.judging import Judge, share_of_text
from dusss_core.training.personal import PersonalSegmenter
from dusss_core.training.segment import _Plain
from tests.dusss_core.conftest import make_config, make_split

N = 12
SEGMENT = {"rounds": 2, "batch": 6, "epochs": 2, "optimizer": {"lr": 1e-2}}


def spread_around(mean, n=20):
    return np.clip(mean + np.linspace(-0.05, 0.05, n), 0, 1)


def test_masks_that_are_as_good_or_better_weigh_in_full():
    assert share_of_text(spread_around(0.8), spread_around(0.8)) == 1
    assert share_of_text(spread_around(0.8), spread_around(0.3)) == 1


def test_the_weight_falls_with_what_is_lost_down_to_nothing():
    shares = [share_of_text(spread_around(0.8 - lost), spread_around(0.8)) for lost in (0.01, 0.05, 0.08, 0.11, 0.3)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1 and 0 < shares[3] < shares[1] and shares[-1] == 0


def test_a_loss_that_chance_explains_costs_no_weight():
    draw = np.random.default_rng(0)
    text, reference = draw.uniform(0.4, 1, 8), draw.uniform(0.4, 1, 8)
    reference += text.mean() - reference.mean() + 0.05
    assert share_of_text(text, reference) == 1


def test_one_picture_is_judged_by_only_where_it_says_much():
    assert share_of_text(np.array([0.6]), np.array([0.8])) == 1
    assert share_of_text(np.array([0.0]), np.array([0.9])) == 0


def semi(share, *, has_text=(True, True, False), teacher=True):
    draw = torch.Generator().manual_seed(3)
    student, text, taught = (torch.randn(3, 1, 8, 8, generator=draw) for _ in range(3))
    settings = {"method": MethodConfig(), "confidence": 0.0, "dice": True, "teacher_ramp": 0.6}
    weights = {"guided_weight": 2.0, "teacher_only_weight": 0.5}
    loss, _ = semi_supervised_loss(
        student, taught if teacher else None, text, torch.tensor(has_text), **settings, **weights, text_share=share
    )
    return loss


def test_between_full_weight_and_none_the_loss_goes_from_that_of_text_to_that_of_the_teacher_alone():
    full, none = semi(1.0), semi(1.0, has_text=(False, False, False))
    torch.testing.assert_close(semi(0.0), none, rtol=0, atol=0)
    torch.testing.assert_close(semi(0.25), 0.25 * full + 0.75 * none)
    assert abs(full - none) > 0.1


def test_without_a_teacher_what_text_costs_is_scaled():
    torch.testing.assert_close(semi(0.25, teacher=False), 0.25 * semi(1.0, teacher=False))
    assert semi(0.0, teacher=False) == 0


def site(text_dice=None, *, logits=4.0, kind=Segmenter, judge=True, **changes):
    """A trainer whose text-guided masks are the true ones, `logits` strong; negative: their opposite."""
    config = make_config(**{"segment": SEGMENT, "student": {"width": 8}, "method": {"judge_text": judge}, **changes})
    train, val = make_split(N), make_split(n=16, seed=1)
    text_logits = ((train.masks[:, None] * 2.0 - 1) * logits).astype(np.float16)
    trainer = kind(config, "a", train, val, text_logits=text_logits, text_dice=text_dice)
    trainer.load_shared(initial_shared(config, Phase.SEGMENT))
    return trainer


def trained(trainer, *rounds):
    figures = [trainer.train_round(number) for number in rounds or (1, 2)]
    return digest_of_tensors(trainer.shared()), figures


PERFECT, HOPELESS = np.ones(16), np.zeros(16)


def test_masks_that_never_lose_leave_the_training_as_it_is_to_the_last_bit():
    judged, figures = trained(site(PERFECT))
    assert [one["text_share"] for one in figures] == [1, 1]
    assert judged == trained(site(PERFECT, judge=False))[0] == trained(site(None))[0]


def test_masks_that_lose_against_a_student_of_the_sites_masks_alone_teach_nothing():
    share = {"segment": {**SEGMENT, "plain_share": 1.0}}
    weights, figures = trained(site(HOPELESS, **share))
    assert figures[0]["text_share"] == 0 and figures[0]["judged_plain"] > 0.2
    assert weights == trained(site(HOPELESS, logits=-4.0, **share))[0]  # whatever they say
    assert weights != trained(site(None, logits=-4.0, **share))[0]


def test_without_the_plain_student_the_teacher_and_the_global_student_are_left_to_compare_with():
    _, figures = trained(site(HOPELESS, segment={**SEGMENT, "plain_share": 0}))
    assert {"judged_text", "judged_teacher", "judged_student"} < set(figures[0])
    assert "judged_plain" not in figures[0]


def test_a_site_without_validation_pictures_to_judge_by_lets_them_weigh_in_full():
    for nothing in (None, np.full(16, np.nan)):
        trainer = site(nothing)
        assert "text_share" not in trained(trainer, 1)[1][0] and trainer.text_share == 1


def test_the_plain_student_is_trained_once_and_a_site_that_goes_on_judges_as_one_that_never_stopped():
    straight = site(HOPELESS)
    first = trained(straight, 1)[1][0]
    kept, shared = straight.private(), straight.shared()
    resumed = site(HOPELESS)
    resumed.load_private(kept)
    resumed.load_shared(shared)
    assert resumed.text_share == first["text_share"]
    resumed._train_plain = lambda first_round: pytest.fail("trained again")
    straight.load_shared(shared)
    assert trained(resumed, 2) == trained(straight, 2)


@pytest.mark.parametrize(("number", "as_it_came"), [(1, True), (2, False)])
def test_the_plain_student_starts_as_the_study_does_with_its_public_weights(number, as_it_came, monkeypatch):
    """They are in the first round's global model alone; a site that comes later starts it from seeded weights."""
    seen = []
    monkeypatch.setattr(_Plain, "train_round", lambda self, round: seen.append(digest_of_parameters(self.student)))
    trainer = site(HOPELESS)
    seeded = digest_of_parameters(trainer.student)
    trainer.load_shared({name: 0.5 * t if t.is_floating_point() else t for name, t in trainer.shared().items()})
    came = digest_of_parameters(trainer.student)
    trainer.train_round(number)
    assert seen == [came if as_it_came else seeded] and came != seeded


def digest_of_parameters(student):
    return digest_of_tensors({name: value.detach() for name, value in student.named_parameters()})


def test_where_nothing_teaches_a_site_without_labels_hands_on_what_came():
    """Text-guided masks that weigh nothing, and no teacher: weight decay alone would move it."""
    trainer = site(None, method={"preset": "dusss", "teacher": False})
    trainer.labelled = trainer.labelled[:0]
    for share, moves in ((0.0, False), (0.5, True)):
        trainer.judge = SimpleNamespace(
            share=share, plain=np.zeros(1), judge=lambda students: {}, state=dict, load_state=lambda tensors: None
        )
        before = digest_of_tensors(trainer.shared())
        trainer.train_round(1)
        assert (digest_of_tensors(trainer.shared()) != before) is moves


def test_a_plain_student_makes_no_more_steps_than_the_site_allows():
    trainer = site(HOPELESS)
    seen = []
    trainer.progress = lambda step, steps, loss: seen.append(steps)
    trainer.spare_steps = 1
    trainer.train_round(1)
    assert seen.count(1) == 1
    trainer = site(HOPELESS)
    trainer.spare_steps = 0
    assert "judged_plain" not in trainer.train_round(1)


@pytest.mark.parametrize("kind", ["ditto", "apfl"])
def test_a_student_of_the_sites_own_learns_from_text_as_the_global_one_does(kind):
    share = {"segment": {**SEGMENT, "plain_share": 1.0}, "personal": kind}
    students = []
    for logits in (4.0, -4.0):
        trainer = site(HOPELESS, logits=logits, kind=PersonalSegmenter, **share)
        trainer.train_round(1)
        assert trainer.own.text_share == 0
        students.append(digest_of_tensors(trainer.own.model.state_dict()))
    assert students[0] == students[1]


def judge_of(val):
    return Judge(make_config(), val, np.linspace(0.2, 0.8, len(val)), torch.device("cpu"))


@pytest.mark.parametrize("other", ["ids", "images", "masks"])
def test_figures_of_other_validation_pictures_are_forgotten_though_they_are_as_many(other):
    val = make_split(n=4, labelled=4)
    judge = judge_of(val)
    judge.plain, judge.share = np.linspace(0.1, 0.4, 4), 0.25
    again = judge_of(val)
    again.load_state(judge.state())
    assert again.share == 0.25 and np.array_equal(again.plain, judge.plain)
    turned = tuple(reversed(val.ids)) if other == "ids" else getattr(val, other)[::-1].copy()
    of_others = judge_of(replace(val, **{other: turned}))
    of_others.load_state(judge.state())
    assert of_others.share == 1 and of_others.plain is None


def test_figures_that_an_earlier_release_kept_are_taken_back_where_there_are_as_many():
    judge = judge_of(make_split(n=4, labelled=4))
    judge.plain = np.linspace(0.1, 0.4, 4)
    earlier = {name: value for name, value in judge.state().items() if name in ("share", "plain")}
    again, fewer = judge_of(make_split(n=4, labelled=4)), judge_of(make_split(n=3, labelled=3))
    again.load_state(earlier)
    fewer.load_state(earlier)
    assert np.array_equal(again.plain, judge.plain) and fewer.plain is None
