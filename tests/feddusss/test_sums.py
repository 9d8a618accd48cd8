"""The sum is exact, whoever drops out, down to the threshold; below it there is none."""

from __future__ import annotations

import numpy as np
import pytest

from feddusss.secagg.member import default_threshold
from feddusss.secagg.records import Refused
from tests.feddusss.sessions import NAMES, Session, total_of, vectors


@pytest.mark.parametrize(("sites", "threshold"), [(2, 2), (3, 2), (3, 3), (5, 4)])
def test_the_sum_is_exact_to_the_last_bit(sites, threshold):
    names = NAMES[:sites]
    values = vectors(names)
    total = Session(names, threshold).run(values)
    assert np.array_equal(total, total_of(values, names))


def test_the_sum_is_exact_modulo_two_to_the_64_for_any_integers():
    draw = np.random.default_rng(4)
    values = {name: draw.integers(0, 2**64, 1000, dtype=np.uint64) for name in NAMES}
    assert np.array_equal(Session(NAMES, 4).run(values), total_of(values, NAMES))


@pytest.mark.parametrize("gone", [{"alder"}, {"cedar"}, {"birch", "elm"}, {"alder", "dogwood"}])
def test_sites_that_drop_out_while_they_train_leave_the_sum_of_the_others(gone):
    values = vectors(NAMES)
    left = [name for name in NAMES if name not in gone]
    assert np.array_equal(Session(NAMES, 3).run(values, left), total_of(values, left))


@pytest.mark.parametrize("gone", [("alder",), ("birch", "elm")])
def test_sites_that_drop_out_after_their_masked_update_stay_in_the_sum(gone):
    values, left = vectors(NAMES), [name for name in NAMES if name not in gone]
    session = Session(NAMES, 3)
    session.begin()
    session.deal()
    session.mask(values)
    session.vote(left)
    session.reveal()
    assert np.array_equal(session.convener.total(), total_of(values, NAMES))


def test_sites_may_drop_out_at_every_step_down_to_the_threshold():
    values, session = vectors(NAMES), Session(NAMES, 3)
    session.begin()
    session.deal()
    session.mask(values, NAMES[:4])
    session.vote(NAMES[:4])
    session.reveal(NAMES[1:4])
    assert np.array_equal(session.convener.total(), total_of(values, NAMES[:4]))


def masked(survivors):
    """A session of all, threshold 4, in which `survivors` have given their masked vectors."""
    session = Session(NAMES, 4)
    session.begin()
    session.deal()
    session.mask(vectors(NAMES), survivors)
    return session


def test_with_fewer_survivors_than_the_threshold_no_site_votes():
    session = masked(NAMES[:3])
    with pytest.raises(Refused, match="3 survivors, 4 needed"):
        session.vote()


def test_with_fewer_votes_than_the_threshold_no_site_reveals():
    session = masked(NAMES)
    session.vote(NAMES[:3])
    with pytest.raises(Refused, match="3 votes for these survivors, 4 needed"):
        session.reveal()


def test_with_fewer_shares_than_the_threshold_there_is_no_sum():
    session = masked(NAMES)
    session.vote()
    session.reveal(NAMES[:3])
    with pytest.raises(Refused, match="shares of 3 sites, 4 needed"):
        session.convener.total()


def test_the_default_threshold_is_more_than_two_thirds():
    assert [default_threshold(n) for n in range(2, 11)] == [2, 3, 3, 4, 5, 5, 6, 7, 7]
