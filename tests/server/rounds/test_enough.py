"""Too few answers: what is said of them is why."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dusss_core.errors import UserError
from dusss_core.phases import Phase
from server.rounds.enough import check_enough
from server.rounds.replies import DIVERGED, EXHAUSTED, Reply
from tests.server.conftest import make_study

SITES = ("alder", "birch", "cedar")


def told(tmp_path, replies):
    """Of a first round of segmentation that needs all three sites, of which cedar has nothing to learn from."""
    roster = SimpleNamespace(training=lambda: [SimpleNamespace(name=name) for name in SITES], away=lambda: [])
    run = SimpleNamespace(accepted=lambda phase, round: {}, checkpoints=SimpleNamespace(rounds=lambda phase: []))
    cedar = Reply("cedar", reason="no masks", abstains=True)
    study = make_study(federation__min_sites=3)
    with pytest.raises(UserError) as raised:
        check_enough(study, run, roster, Phase.SEGMENT, 1, {**replies, "cedar": cedar}, {"cedar": "no masks"})
    return str(raised.value)


def test_where_nobody_has_trained_nothing_has_diverged(tmp_path):
    """Under secure aggregation a round is over before anybody trains where too few give keys."""
    assert "2 of 3 sites can take part, 3 needed" in told(tmp_path, {})


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
