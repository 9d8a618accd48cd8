"""Shares: any `threshold` give the secret, fewer give nothing, and what was changed on the way is refused by name."""

from __future__ import annotations

import itertools
import os

import pytest

from feddusss.secagg import masking, sharing
from feddusss.secagg.records import Refused


@pytest.mark.parametrize(("threshold", "holders"), [(2, 2), (2, 3), (3, 5), (7, 10)])
def test_any_threshold_of_the_shares_give_the_secret(threshold, holders):
    secret = os.urandom(32)
    shares = dict(enumerate(sharing.split(secret, threshold, holders), start=1))
    for chosen in itertools.islice(itertools.combinations(shares, threshold), 10):
        assert sharing.combine({holder: shares[holder] for holder in chosen}, threshold) == secret
    assert sharing.combine(shares, threshold) == secret


def test_fewer_shares_give_no_secret():
    secret = os.urandom(32)
    shares = dict(enumerate(sharing.split(secret, 3, 5), start=1))
    with pytest.raises(ValueError, match="2 shares, 3 needed"):
        sharing.combine({1: shares[1], 2: shares[2]}, 3)
    # as if the threshold were smaller: both halves come out wrong
    guess = sharing.combine({1: shares[1], 2: shares[2]}, 2)
    assert guess[:16] != secret[:16] and guess[16:] != secret[16:]


def test_both_halves_have_polynomials_of_their_own():
    first, *_ = sharing.split(bytes(32), 2, 3)
    assert first[:16] != first[16:]


def test_a_sealed_share_opens_for_its_holder_only_and_not_in_another_session():
    key, shares = os.urandom(32), os.urandom(64)
    sealed = sharing.seal(key, b"one", shares)
    assert b"".join(sharing.unseal(key, b"one", sealed, "alder")) == shares
    flipped = sealed[:-1] + ("0" if sealed[-1] != "0" else "1")
    for wrong in ((os.urandom(32), b"one", sealed), (key, b"two", sealed), (key, b"one", flipped)):
        with pytest.raises(Refused, match="'alder' were changed") as refused:
            sharing.unseal(*wrong, "alder")
        assert refused.value.site == "alder"


def test_two_sites_agree_on_a_key_and_each_purpose_has_its_own():
    one, other, session = masking.new_secret(), masking.new_secret(), "5e" * 32
    public = masking.public_half(one), masking.public_half(other)
    ours = masking.pair_key(one, public[1], session, "alder", "birch")
    assert ours == masking.pair_key(other, public[0], session, "birch", "alder")
    keys = {
        ours,
        masking.pair_key(one, public[1], "5f" * 32, "alder", "birch"),
        masking.sealing_key(one, public[1], session, "alder", "birch", "birch"),
        masking.sealing_key(one, public[1], session, "birch", "alder", "birch"),
    }
    assert len(keys) == 4 and {len(key) for key in keys} == {32}


def test_a_key_that_agrees_on_nothing_is_refused_by_name():
    with pytest.raises(Refused, match="'birch' sent a key that agrees on nothing"):
        masking.pair_key(masking.new_secret(), "00" * 32, "5e" * 32, "alder", "birch")


def test_a_mask_does_not_depend_on_how_it_is_cut():
    import numpy as np

    key, long = os.urandom(32), np.zeros(300_000, dtype=np.uint64)
    masking.add_mask(long, key, 1)
    short = np.zeros(1000, dtype=np.uint64)
    masking.add_mask(short, key, 1)
    assert (long[:1000] == short).all() and len(np.unique(long)) == len(long)
    masking.add_mask(long, key, -1)
    assert not long.any()
