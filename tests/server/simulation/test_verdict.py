"""The verdict of a comparison: who is best where, and whether that is more than chance."""

from __future__ import annotations

import pytest

from server.simulation.verdict import noise, our_name, verdict
from tests.server.conftest import make_study


def sites(n=100, **dice):
    return {"sites": {name: {"dice": value, "n_test": n} for name, value in dice.items()}}


def told(ours, n=100, study=None, **compare):
    return verdict(study or make_study(), {**sites(n, **ours), "compare": compare})


def test_a_method_that_loses_is_said_to_with_the_site_where_it_does():
    text = told({"a": 0.8, "b": 0.4}, supervised=sites(a=0.79, b=0.7), local=sites(a=0.7, b=0.72))
    assert text.startswith(
        "Best at a federated DuSSS (0.800; federated supervised training 0.790, within noise), "
        "at b each site alone (0.720; federated DuSSS 0.400)."
    )
    assert "federated DuSSS has 0.600, 14.5 points below federated supervised training (0.745)" in text
    assert text.endswith("so it is not worth it here (one seed).")


def test_a_method_that_gains_more_than_chance_is_worth_it():
    text = told({"a": 0.8, "b": 0.7}, supervised=sites(a=0.7, b=0.6))
    assert "10.0 points above federated supervised training (0.650)" in text and text.endswith(
        "worth it here (one seed)."
    )
    assert "not worth it" not in text


def test_a_difference_that_so_few_pictures_cannot_tell_is_called_noise():
    few, many = (told({"a": 0.8}, n, supervised=sites(n, a=0.77)) for n in (25, 2500))
    assert "within noise" in few and "worth it here" in many and "within noise" not in many
    assert "(0.770; federated DuSSS 0.740, within noise)" in told({"a": 0.74}, 25, supervised=sites(a=0.77))
    assert "0.936, as much as federated supervised training (0.936): within" in told(
        {"a": 0.9361}, 11, supervised=sites(11, a=0.9359)
    )
    assert noise(100) == 0.03


def test_several_pictures_of_a_patient_tell_no_more_than_one():
    summary = {**sites(100, a=0.8, b=0.8), "compare": {"supervised": sites(100, a=0.76, b=0.76)}}
    each_its_own, few = verdict(make_study(), summary), verdict(make_study(), summary, {"a": 8, "b": 12})
    assert "within noise" not in each_its_own and "the 2.1 that 200 test pictures can tell apart" in each_its_own
    assert few.count("within noise") == 3 and "the 6.8 that 200 test pictures of 20 patients can tell apart" in few


def test_a_mean_over_some_of_the_sites_says_of_how_many():
    ours = {"a": 0.8, "b": 0.6, "c": 0.1}
    text = told(ours, local=sites(a=0.7, b=0.5), supervised=sites(a=0.7, b=0.5, c=0.1))
    assert "In the mean over the 2 of 3 sites where each method has a figure federated DuSSS has 0.700" in text
    assert "over the 2 of 3 sites" in told(ours, centralized=sites(a=0.7, b=0.5))


def test_a_method_that_is_called_as_the_studys_own_does_not_take_its_place():
    study = make_study(method={"preset": "paper"})
    text = told({"a": 0.8}, study=study, paper=sites(a=0.6))
    assert "Best at a federated the paper's settings (0.800; federated the paper's settings by --compare 0.600)" in text


def test_whoever_leads_by_less_than_chance_is_said_to():
    best, next_ = (sites(6, a=value) for value in (0.701, 0.7))
    own = told({"a": 0.701}, 6, local=next_, supervised=sites(6, a=0.69))
    assert own.startswith("Best at a federated DuSSS (0.701; each site alone 0.700, within noise).")
    other = told({"a": 0.7}, 6, local=best, supervised=sites(6, a=0.69))
    assert other.startswith("Best at a each site alone (0.701; federated DuSSS 0.700, within noise).")
    clear = told({"a": 0.9}, 100, local=next_, supervised=sites(a=0.6))
    assert clear.startswith("Best at a federated DuSSS (0.900; each site alone 0.700).")


def test_methods_that_could_not_run_and_sites_without_figures_are_left_out():
    assert told({"a": 0.8}, supervised={"reason": "no"}) is None
    assert told({"a": None}, supervised=sites(a=0.7)) is None
    assert "at b" not in told({"a": 0.8, "b": 0.8}, supervised=sites(a=0.7, b=None))


def test_pooled_data_are_no_rival_and_another_method_has_its_own_name():
    text = told({"a": 0.7}, centralized=sites(a=0.9), mean_teacher=sites(a=0.6))
    assert "Best at a the pooled data (0.900" in text and "above federated Mean Teacher" in text
    assert "the pooled data 0.900." in told({"a": 0.7}, centralized=sites(a=0.9))
    other = make_study(method={"objective": "fixmatch"})
    assert "federated fixmatch has 0.700" in told({"a": 0.7}, study=other, supervised=sites(a=0.6))


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ({}, "DuSSS"),
        ({"preset": "paper"}, "the paper's settings"),
        ({"preset": "mean_teacher"}, "Mean Teacher"),
        ({"preset": "supervised"}, "supervised training"),
        ({"preset": "supervised", "pretraining": "mgca"}, "supervised training"),  # no step 1
        ({"preset": "clip"}, "CLIP-style pretraining"),
        ({"pretraining": "mgca"}, "DuSSS with MGCA pretraining"),
        ({"preset": "clip", "pretraining": "cmitm"}, "DuSSS with CMITM pretraining"),
        ({"pretraining": "asg", "teacher": False}, "DuSSS with ASG pretraining without a teacher"),
        ({"text_mask": False}, "DuSSS without text masks"),
        ({"teacher": False}, "DuSSS without a teacher"),
        ({"text_mask": False, "teacher": False, "dcl": False}, "DuSSS without text masks and without a teacher"),
        ({"sss": False}, "DuSSS without SSS"),
        ({"preset": "mean_teacher", "text_mask": True}, "Mean Teacher with text masks"),
        ({"objective": "bcp"}, "bcp"),
    ],
    ids=str,
)
def test_a_study_is_called_what_it_is(method, name):
    assert our_name(make_study(method=method)) == f"federated {name}"


def test_where_sites_have_students_of_their_own_those_are_compared():
    ours, theirs = sites(a=0.6), sites(a=0.65)
    ours["sites"]["a"]["personal_dice"], theirs["sites"]["a"]["personal_dice"] = 0.8, 0.7
    text = verdict(make_study(), {**ours, "compare": {"supervised": theirs}})
    assert "federated DuSSS has 0.800, 10.0 points above federated supervised training (0.700)" in text


def trained(**counts):
    found = sites(**dict.fromkeys(counts, 0.7))
    for name, (labelled, others) in counts.items():
        found["sites"][name] |= {"n_labeled": labelled, "n_unlabeled": others}
    return found


def test_the_steps_that_pooled_data_are_ahead_by_are_told_with_what_makes_up_for_them():
    study = make_study(pretrain={"batch": 8, "epochs": 2}, segment={"batch": 8, "epochs": 1})
    ours = trained(a=(10, 70), b=(4, 76), c=(20, 60))
    text = verdict(study, {**ours, "compare": {"centralized": sites(a=0.72, b=0.72, c=0.72)}})
    assert text.endswith(
        "The pooled data's model made 3.0 times as many steps one after another; as many with pretrain.epochs: 6, "
        "segment.epochs: 3."
    )
    without = verdict(study, {**ours, "compare": {"supervised": sites(a=0.72, b=0.72, c=0.72)}})
    assert "steps" not in without


def test_equal_steps_are_not_spoken_of():
    ours = trained(a=(10, 70), b=(4, 76))
    capped = make_study(pretrain={"batch": 8, "steps": 5}, segment={"batch": 8, "steps": 5})
    one_large = trained(a=(100, 700), b=(1, 0))
    one_large["sites"] = {"a": one_large["sites"]["a"]}
    compare = {"centralized": sites(a=0.72, b=0.72)}
    assert "steps" not in verdict(capped, {**ours, "compare": compare})
    assert "steps" not in verdict(make_study(), {**one_large, "compare": {"centralized": sites(a=0.72)}})


def test_a_method_without_pretraining_is_told_of_its_only_step():
    study = make_study(method={"preset": "supervised"}, segment={"batch": 8})
    text = verdict(study, {**trained(a=(10, 70), b=(4, 76)), "compare": {"centralized": sites(a=0.72, b=0.72)}})
    assert text.endswith("made 2.0 times as many steps one after another; as many with segment.epochs: 2.")
