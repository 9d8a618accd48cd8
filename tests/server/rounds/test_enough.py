"""Too few answers: what is said of them is why."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dusss_core.errors import UserError
from dusss_core.phases import Phase
from server.rounds.enough import RoundFailed, check_enough
from server.rounds.replies import DIVERGED, EXHAUSTED, LIMITED, LOST, Reply
from tests.server.conftest import make_study

SITES = ("alder", "birch", "cedar")


def told(tmp_path, replies, **federation):
    """Of a first round of segmentation that needs all three sites, of which cedar has nothing to learn from."""
    roster = SimpleNamespace(training=lambda: [SimpleNamespace(name=name) for name in SITES], away=lambda: [])
    run = SimpleNamespace(accepted=lambda phase, round: {}, checkpoints=SimpleNamespace(rounds=lambda phase: []))
    cedar = Reply("cedar", reason="no masks", abstains=True)
    study = make_study(federation=federation or {"min_sites": 3})
    with pytest.raises(UserError) as raised:
        check_enough(study, run, roster, Phase.SEGMENT, 1, {**replies, "cedar": cedar}, {"cedar": "no masks"})
    return str(raised.value)


def test_where_nobody_has_trained_nothing_has_diverged(tmp_path):
    """Under secure aggregation a round is over before anybody trains where too few give keys."""
    assert "2 of 3 sites can take part, 3 needed" in told(tmp_path, {})


def test_a_sum_that_too_few_sites_can_join_is_not_worth_another_try(tmp_path):
    """Without `secure_threshold` a sum needs more than two thirds of all sites, whoever can take part."""
    said = told(tmp_path, {}, secure_aggregation=True)
    assert "2 of 3 sites can take part, 3 needed; trying again would end the same way" in said
    assert "or lower federation.secure_threshold (now 3) to 2" in said and "min_sites" not in said
    both = told(tmp_path, {}, secure_aggregation=True, secure_threshold=3, min_sites=3)
    assert "lower federation.secure_threshold (now 3) and federation.min_sites (now 3) to 2" in both


@pytest.mark.parametrize(
    ("kind", "words"), [(DIVERGED, "not finite at every site"), (EXHAUSTED, "no site has the memory")]
)
def test_what_all_that_trained_have_in_common_is_said(tmp_path, kind, words):
    assert words in told(tmp_path, {name: Reply(name, reason="it failed", kind=kind) for name in SITES[:2]})


def test_what_one_of_them_has_alone_is_not(tmp_path):
    kinds = {"alder": DIVERGED, "birch": EXHAUSTED}
    assert "2 of 3 sites" in told(
        tmp_path, {name: Reply(name, reason="it failed", kind=k) for name, k in kinds.items()}
    )


def limited(replies):
    """A second round of two sites that needs both."""
    roster = SimpleNamespace(training=lambda: [SimpleNamespace(name=name) for name in SITES[:2]], away=lambda: [])
    run = SimpleNamespace(accepted=lambda phase, round: {}, checkpoints=SimpleNamespace(rounds=lambda phase: [1]))
    check_enough(make_study(federation__min_sites=2), run, roster, Phase.SEGMENT, 2, replies, {})


STEPS = Reply("alder", "more steps per round than this site allows (2, limits.max_steps_per_round)", kind=LIMITED)


def test_a_round_that_only_limits_of_sites_kept_short_is_the_users_to_mend_and_names_them():
    with pytest.raises(UserError) as raised:
        limited({"alder": STEPS, "birch": Reply("birch")})
    assert "1 of 2 sites could be used, 2 needed" in raised.value.problem
    assert "alder: more steps per round than this site allows" in raised.value.problem
    assert "lower federation.min_sites (now 2) to 1" in raised.value.remedy and "--resume" in raised.value.remedy
    with pytest.raises(UserError) as raised:
        limited({"alder": STEPS, "birch": STEPS})
    assert "min_sites" not in raised.value.remedy


@pytest.mark.parametrize("other", [Reply("birch", "no answer in time", kind=LOST), Reply("birch", "its answer is odd")])
def test_a_round_that_lacks_another_site_too_may_be_tried_again(other):
    with pytest.raises(RoundFailed):
        limited({"alder": STEPS, "birch": other})
