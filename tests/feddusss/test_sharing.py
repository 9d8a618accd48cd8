"""Shares: any `threshold` give the secret, fewer give nothing, and what was changed on the way is refused by name."""

from __future__ import annotations

import itertools
import os

import pytest

from feddusss.secagg import curve, masking, sharing
from feddusss.secagg.records import Refused


@pytest.mark.parametrize(("threshold", "holders"), [(2, 2), (2, 3), (3, 5), (7, 10)])
def test_any_threshold_of_the_shares_give_the_secret(threshold, holders):
    secret = masking.new_secret()
    shares = dict(enumerate(sharing.split(secret, threshold, holders)[0], start=1))
    for chosen in itertools.islice(itertools.combinations(shares, threshold), 10):
        assert sharing.combine({holder: shares[holder] for holder in chosen}, threshold) == secret
    assert sharing.combine(shares, threshold) == secret


def test_fewer_shares_give_no_secret():
    secret = masking.new_secret()
    shares = dict(enumerate(sharing.split(secret, 3, 5)[0], start=1))
    with pytest.raises(ValueError, match="2 shares, 3 needed"):
        sharing.combine({1: shares[1], 2: shares[2]}, 3)
    # as if the threshold were smaller
    assert sharing.combine({1: shares[1], 2: shares[2]}, 2) != secret
    # with any other secret fewer shares fit as well: a third share can be found for each
    other = curve.from_bytes(masking.new_secret())
    one, two = (curve.from_bytes(shares[holder]) for holder in (1, 2))
    third = curve.to_bytes(other - 3 * one + 3 * two)  # f(3) of the parabola through (0, other), (1, one), (2, two)
    assert sharing.combine({1: shares[1], 2: shares[2], 3: third}, 3) == curve.to_bytes(other)


def test_a_share_fits_what_was_published_for_its_holder_alone():
    secret = masking.new_secret()
    shares, points = sharing.split(secret, 3, 5)
    assert points[0] == masking.public_half(secret) and len(points) == 3
    for holder, share in enumerate(shares, start=1):
        assert [sharing.fits(share, number, points) for number in range(1, 6)] == [
            number == holder for number in range(1, 6)
        ]
    assert not sharing.fits(b"\xff" * 32, 1, points)
    assert not sharing.fits(curve.to_bytes(curve.from_bytes(shares[0]) + 1), 1, points)


def test_points_are_those_of_the_standard():
    # NIST's points of small multiples of G, as SEC 1 compresses them
    assert curve.encoded(curve.times_base(1)) == "036b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    assert curve.encoded(curve.times_base(2)) == "037cf27b188d034f7e8a52380304b51ac3c08969e277f21b35a60b48fc47669978"
    assert curve.decoded(curve.encoded(curve.times_base(5))) == curve.times_base(2) + curve.times_base(3)
    assert (curve.times_base(curve.ORDER - 1) + curve.times_base(1)).is_point_at_infinity()
    for wrong in ("02" + "ff" * 32, "02" + "00" * 31 + "01"):
        with pytest.raises(ValueError):
            curve.decoded(wrong)


def test_what_two_sites_agree_on_is_what_a_complaint_shows():
    one, other = masking.new_secret(), masking.new_secret()
    point = curve.decoded(masking.public_half(one)) * curve.from_bytes(other)
    assert curve.x_of(point) == masking._agreed(one, masking.public_half(other), "birch")


def test_a_sealed_share_opens_for_its_holder_only_and_not_in_another_session():
    key, shares = os.urandom(32), os.urandom(64)
    sealed = sharing.seal(key, b"one", shares)
    assert b"".join(sharing.unseal(key, b"one", sealed, "alder")) == shares
    flipped = sealed[:-1] + ("0" if sealed[-1] != "0" else "1")
    for wrong in ((os.urandom(32), b"one", sealed), (key, b"two", sealed), (key, b"one", flipped)):
        with pytest.raises(Refused, match="'alder' do not open") as refused:
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
        masking.pair_key(masking.new_secret(), "02" + "ff" * 32, "5e" * 32, "alder", "birch")


def test_a_mask_does_not_depend_on_how_it_is_cut():
    import numpy as np

    key, long = os.urandom(32), np.zeros(300_000, dtype=np.uint64)
    masking.add_mask(long, key, 1)
    short = np.zeros(1000, dtype=np.uint64)
    masking.add_mask(short, key, 1)
    assert (long[:1000] == short).all() and len(np.unique(long)) == len(long)
    masking.add_mask(long, key, -1)
    assert not long.any()
