"""What the coordinator receives says nothing of one site's update, and what it might try gets it nowhere.

Each attack is played twice: against the protocol, where it must fail, and against a protocol with the one bug that the
attack is for, where it must succeed. So an attack that could not succeed anyway would be noticed.
"""

from __future__ import annotations

import copy
from itertools import combinations

import numpy as np
import pytest

from feddusss.secagg import masking, member
from feddusss.secagg.member import Member, MemberState
from feddusss.secagg.records import Refused
from tests.feddusss import sessions
from tests.feddusss.sessions import NAMES, Session, key_of, looks_uniform, reduced, total_of, vectors

THREE, FOUR = NAMES[:3], NAMES[:4]


def test_a_masked_vector_looks_uniform_whatever_is_in_it():
    zeros = {name: np.zeros(2**16, dtype=np.uint64) for name in THREE}
    session = Session()
    session.run(zeros)
    assert all(looks_uniform(session.masked[name]) for name in THREE)
    # the test can tell: updates and zeros do not pass it
    assert not looks_uniform(zeros["alder"]) and not looks_uniform(vectors(THREE, 2**16)["alder"])


@pytest.mark.parametrize("gone", [(), ("birch",)])
def test_with_all_that_the_coordinator_learns_no_part_of_the_survivors_has_a_sum(gone):
    values = {name: np.full(2**15, 7, dtype=np.uint64) for name in FOUR}
    left = [name for name in FOUR if name not in gone]
    session = Session(FOUR, 3)
    session.run(values, left)
    known = {name: reduced(session, name) for name in left}
    for size in range(1, len(left)):
        for part in combinations(left, size):
            assert looks_uniform(total_of(known, part)), part
    assert np.array_equal(total_of(known, left), total_of(values, left))


def test_what_is_received_fits_any_updates_with_the_same_sum_equally_well(monkeypatch):
    """The masks between two sites as one-time pads: to each other pair of updates with the same sum there is exactly
    one pad that gives the same messages, and all pads are equally likely."""
    session = Session(FOUR, 3)
    session.begin()
    session.deal()
    draw = np.random.default_rng(5)
    values = vectors(FOUR)
    moved = draw.integers(0, 2**64, sessions.LENGTH, dtype=np.uint64)
    others = {**values, "alder": values["alder"] + moved, "birch": values["birch"] - moved}
    pad = draw.integers(0, 2**64, sessions.LENGTH, dtype=np.uint64)
    between = masking.pair_key(
        bytes.fromhex(session.states["alder"].mask_secret),
        session.states["birch"].advert.mask_key,
        session.convener.session,
        "alder",
        "birch",
    )
    add_mask = masking.add_mask

    def received(updates, pad):
        def padded(vector, key, sign):
            if key != between:
                return add_mask(vector, key, sign)
            return np.add(vector, pad, out=vector) if sign > 0 else np.subtract(vector, pad, out=vector)

        monkeypatch.setattr(masking, "add_mask", padded)
        played = copy.deepcopy(session)
        played.mask(updates, FOUR[:3])
        played.vote()
        played.reveal()
        return played

    one, other = received(values, pad), received(others, pad - moved)
    assert all(np.array_equal(one.masked[name], other.masked[name]) for name in FOUR[:3])
    assert one.revealed == other.revealed
    assert np.array_equal(one.convener.total(), total_of(values, FOUR[:3]))


# Attacks: each returns whether the coordinator has one site's update.


def late_update() -> bool:
    """A site is said to have dropped out, its mask key is put together, and then its masked update arrives."""
    values, session = vectors(THREE), Session(THREE, 2)
    session.begin()
    session.deal()
    session.mask(values, THREE[:2])
    session.mask(values, ["cedar"], add=False)
    session.vote()
    session.reveal()
    session.convener.total()
    return np.array_equal(reduced(session, "cedar"), values["cedar"])


def two_sessions_compared() -> bool:
    """Are a site's masks of two sessions the same? Then they cancel."""
    first, second = Session(), Session()
    one, other = vectors(THREE, seed=1), vectors(THREE, seed=2)
    first.run(one)
    second.run(other)
    return np.array_equal(first.masked["alder"] - second.masked["alder"], one["alder"] - other["alder"])


def coordinator_in_the_middle() -> bool:
    """The coordinator plays all other sites, with keys of its own making."""
    values, session = vectors(THREE), Session()
    names = {"birch": "mallory", "cedar": "mallory 2"}
    for name in THREE:
        own = Member.begin(session.about, name, key_of(names.get(name, name)))
        session.states[name] = own.state
    session.convener = sessions.Convener(session.about, [state.advert for state in session.states.values()])
    for name in reversed(THREE):
        peers = sessions.peers_of(name)
        if name in names:  # the impostors do not check each other
            peers = {other: key_of(names.get(other, other)).public_key() for other in THREE}
        current = session.member(name)
        dealing = current.deal(session.convener.adverts().adverts, peers, 2, key_of(names.get(name, name)))
        session.convener.take_dealing(name, dealing)
    session.mask(values)
    session.vote()
    session.reveal()
    total = session.convener.total()
    return np.array_equal(total - values["birch"] - values["cedar"], values["alder"])


def two_sets_of_survivors() -> bool:
    """Shares for one set, and then for a smaller one: the difference of the sums is one site's update."""
    values, session = vectors(THREE), Session(THREE, 2)
    session.begin()
    session.deal()
    session.mask(values)
    smaller = copy.deepcopy(session)
    session.vote()
    session.reveal()
    smaller.states, convener = session.states, smaller.convener
    convener._survivors.remove("cedar")
    convener._sum = session.masked["alder"] + session.masked["birch"]
    smaller.vote()
    smaller.reveal()
    return np.array_equal(session.convener.total() - convener.total(), values["cedar"])


def same_update_in_a_second_attempt() -> bool:
    """The round is repeated with one site less, although its sum was had."""
    values, first = vectors(THREE), Session(THREE, 2)
    total = first.run(values)
    second = Session(THREE[:2], 2, earlier={name: [first.states[name]] for name in THREE})
    return np.array_equal(total - second.run(values), values["cedar"])


ATTACKS = [
    late_update,
    two_sessions_compared,
    coordinator_in_the_middle,
    two_sets_of_survivors,
    same_update_in_a_second_attempt,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_the_attack_fails(attack):
    try:
        learnt = attack()
    except Refused:
        learnt = False
    assert not learnt


def without_self_mask(patch):
    patch.setattr(masking, "self_key", lambda *_: None)
    add_mask = masking.add_mask
    patch.setattr(masking, "add_mask", lambda vector, key, sign: add_mask(vector, key, sign) if key else None)


def with_masks_used_again(patch):
    derived = masking._derived
    patch.setattr(masking, "_derived", lambda material, session, *purpose: derived(bytes(32), "00" * 32, *purpose))


def without_signature_check(patch):
    patch.setattr(member, "is_signed", lambda *_: True)


def revealing_both_shares(patch):
    patch.setattr(Member, "_expect", lambda self, stage: None)
    patch.setattr(MemberState, "forget", lambda self, stage: None)


def without_memory_of_earlier_attempts(patch):
    patch.setattr(member, "_may_be_summed", lambda *_: False)


@pytest.mark.parametrize(
    ("bug", "attack"),
    [
        (without_self_mask, late_update),
        (with_masks_used_again, two_sessions_compared),
        (without_signature_check, coordinator_in_the_middle),
        (revealing_both_shares, two_sets_of_survivors),
        (without_memory_of_earlier_attempts, same_update_in_a_second_attempt),
    ],
    ids=lambda value: value.__name__,
)
def test_with_a_bug_planted_the_attack_succeeds(monkeypatch, bug, attack):
    bug(monkeypatch)
    assert attack()


def test_keys_and_seeds_are_new_in_every_session():
    seen = set()
    for _ in range(3):
        session = Session()
        session.begin()
        session.deal()
        for state in session.states.values():
            seen |= {state.mask_secret, state.share_secret, state.seed, state.session}
    assert len(seen) == 3 * (3 * 3 + 1)


def test_secrets_are_forgotten_when_they_have_served():
    session = Session()
    session.begin()
    session.deal()
    session.mask(vectors(THREE))
    state = session.states["alder"]
    assert (state.mask_secret, state.share_secret, state.seed) == ("", "", "") and state.held
    session.vote()
    session.reveal()
    assert not session.states["alder"].held


def test_a_site_that_has_voted_abandons_nothing_and_one_that_has_not_forgets_its_secrets():
    session = Session()
    session.begin()
    session.deal()
    session.mask(vectors(THREE))
    session.vote(["alder"])
    again = Session(earlier={name: [session.states[name]] for name in THREE})
    adverts = again.begin()
    assert {name: len(advert.abandons) for name, advert in adverts.items()} == {"alder": 0, "birch": 1, "cedar": 1}
    assert session.states["alder"].held and not session.states["birch"].held
