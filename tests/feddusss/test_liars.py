"""Whoever lies is found out and named: about keys, shares, votes, survivors, or what the round is about."""

from __future__ import annotations

import numpy as np
import pytest

from dusss_core.phases import Phase
from feddusss.secagg import masking, sharing
from feddusss.secagg.convener import found_out
from feddusss.secagg.member import Member, MemberState
from feddusss.secagg.records import (
    Advert,
    Adverts,
    Ballot,
    Dealing,
    Refused,
    Revealed,
    Vote,
    dump,
    parse,
    sign,
    vote_bytes,
)
from tests.feddusss.sessions import NAMES, Session, key_of, occasion, peers_of, total_of, vectors

THREE = NAMES[:3]


def ready(threshold=2, names=THREE, **more) -> Session:
    """A session whose members wait for the vote."""
    session = Session(names, threshold, **more)
    session.begin()
    session.deal()
    session.mask(vectors(names))
    return session


def flipped(text: str) -> str:
    """Another signature, number, or point: a point has two forms that differ in its third digit alone."""
    return text[:1] + ("3" if text[1] == "2" else "2") + text[2:]


# Who is believed.


@pytest.mark.parametrize(
    ("accusations", "threshold", "out"),
    [
        ({"alder": ["birch"], "cedar": ["birch"], "dogwood": ["birch"]}, 3, ["birch"]),
        ({"alder": ["birch"], "cedar": ["birch"]}, 3, []),
        ({"alder": ["birch"], "cedar": ["birch"], "birch": ["birch"]}, 3, []),
        ({"alder": ["birch"], "cedar": ["birch"], "nobody": ["birch"]}, 3, []),
        ({"birch": ["alder", "cedar", "dogwood", "elm"]}, 3, []),
        ({name: ["birch", "elm"] for name in ("alder", "cedar", "dogwood")}, 3, ["birch", "elm"]),
        # whoever is out accuses nobody any more, and those that stay are enough for a sum
        ({name: set(NAMES) - {name} for name in NAMES}, 3, ["alder", "birch"]),
        ({"alder": ["birch"], "birch": ["cedar"], **{name: ["birch", "cedar"] for name in NAMES[3:]}}, 3, ["birch"]),
    ],
)
def test_a_member_is_done_without_where_as_many_as_the_threshold_refuse_it_and_stay(accusations, threshold, out):
    assert list(found_out(accusations, NAMES, threshold)) == out


def test_whoever_is_fewer_than_the_threshold_puts_nobody_out():
    for count in range(2, len(NAMES) + 1):
        for threshold in range(count // 2 + 1, count + 1):
            accusations = dict.fromkeys(NAMES[: threshold - 1], NAMES)
            assert not found_out(accusations, NAMES[:count], threshold)


def test_all_whose_keys_are_wrong_are_named_at_once():
    session = Session(NAMES[:4], 3, relay=lambda kind, site, record: unsigned(record) if kind == "advert" else record)
    session.begin()
    with pytest.raises(Refused) as refused:
        session.deal()
    assert refused.value.sites == ("birch", "cedar")


def unsigned(advert):
    wrong = advert.site in ("birch", "cedar")
    return advert.model_copy(update={"signature": flipped(advert.signature)}) if wrong else advert


# Keys.


@pytest.mark.parametrize("what", ["mask_key", "share_key", "abandons", "signature"])
def test_keys_that_were_changed_on_the_way_are_refused_by_name(what):
    def relay(kind, site, record):
        if kind == "advert" and site == "birch":
            old = getattr(record, what)
            return record.model_copy(update={what: ["5e" * 32] if what == "abandons" else flipped(old)})
        return record

    session = Session(relay=relay)
    session.begin()
    with pytest.raises(Refused, match="keys of 'birch' are not signed by its own key") as refused:
        session.deal()
    assert refused.value.site == "birch"


@pytest.mark.parametrize(
    "change", [{"round": 2}, {"phase": Phase.PRETRAIN}, {"run": "cd" * 16}, {"task": "1" * 64}, {"threshold": 2}]
)
def test_keys_of_another_round_run_model_or_threshold_are_refused_by_name(change):
    session = Session()
    session.begin()
    about = session.about.model_copy(update=change)
    session.convener._adverts["birch"] = Member.begin(about, "birch", key_of("birch")).state.advert
    with pytest.raises(Refused, match="keys of 'birch' are of another occasion"):
        session.deal()


def test_a_site_that_is_not_pinned_is_refused_by_name():
    session = Session((*THREE, "mallory"), 3)
    session.begin()
    with pytest.raises(Refused, match="'mallory' is not among the peers"):
        session.deal()


def test_a_site_cannot_be_there_twice_nor_with_other_keys_than_it_gave():
    session = Session()
    adverts = list(session.begin().values())
    member = session.member("alder")
    with pytest.raises(Refused, match="each once"):
        member.deal([*adverts, adverts[1]], peers_of("alder"), 2, key_of("alder"))
    other = Member.begin(session.about, "alder", key_of("alder")).state.advert
    with pytest.raises(Refused, match="with the keys that it gave"):
        member.deal([other, *adverts[1:]], peers_of("alder"), 2, key_of("alder"))


@pytest.mark.parametrize(
    ("names", "threshold", "least", "reason"),
    [
        (NAMES[:4], 2, 2, "more than half"),
        (NAMES[:2], 3, 2, "more than half"),
        (NAMES[:3], 2, 3, "takes part with 3 or more"),
    ],
)
def test_a_threshold_that_protects_too_little_is_refused(names, threshold, least, reason):
    session = Session(names, threshold, least)
    session.begin()
    with pytest.raises(Refused, match=reason):
        session.deal()


def test_members_that_were_told_of_different_members_share_nothing():
    session = Session(NAMES[:4], 3)
    adverts = session.begin()
    dealt = {}
    for name, told in (("alder", NAMES[:3]), ("birch", NAMES[:4])):
        member = session.member(name)
        dealt[name] = member.deal([adverts[other] for other in told], peers_of(name), 2, key_of(name))
        session._keep(member)
    assert session.states["alder"].session != session.states["birch"].session
    key = masking.sealing_key(
        bytes.fromhex(session.states["birch"].share_secret),
        adverts["alder"].share_key,
        session.states["birch"].session,
        "alder",
        "birch",
        "alder",
    )
    with pytest.raises(Refused, match="'alder' do not open"):
        sharing.unseal(key, bytes.fromhex(session.states["birch"].session), dealt["alder"].sealed["birch"], "alder")


# Votes, survivors, and steps that come twice.


def test_a_site_masks_once_per_session():
    session = ready()
    with pytest.raises(Refused, match="was done, or is not due"):
        session.mask(vectors(THREE), ["alder"])


def test_a_site_votes_for_one_set_and_says_the_same_when_it_is_asked_again():
    session = ready()
    member = session.member("alder")
    member.vote(["alder", "birch"], key_of("alder"))
    member.vote(["birch", "alder"], key_of("alder"))
    with pytest.raises(Refused, match="was done"):
        member.vote(THREE, key_of("alder"))


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [
        (["birch", "cedar"], "not among the survivors"),
        (["alder"], "1 survivors, 2 needed"),
        (["alder", "alder"], "each once"),
        (["alder", "elm"], "not members"),
    ],
)
def test_a_site_does_not_vote_for(survivors, reason):
    with pytest.raises(Refused, match=reason):
        ready().member("alder").vote(survivors, key_of("alder"))


def test_a_request_for_shares_that_is_replayed_is_refused():
    session = ready()
    session.vote()
    ballot = session.convener.ballot()
    session.reveal()
    with pytest.raises(Refused, match="was done"):
        session.member("alder").reveal(ballot, peers_of("alder"))


def test_shares_are_revealed_only_for_the_survivors_that_this_site_voted_for():
    session = ready()
    session.vote()
    votes = session.convener.ballot().votes
    with pytest.raises(Refused, match="other survivors than those that this site voted for"):
        session.member("alder").reveal(Ballot(survivors=["alder", "birch"], votes=votes), peers_of("alder"))


def test_votes_count_once_and_only_from_survivors_for_this_set_and_session():
    session = ready(3)
    session.vote(["alder"])
    other = ready(3)
    content = vote_bytes(session.convener.session, THREE)

    def vote(site, key=None, content=content):
        return Vote(site=site, signature=sign(key_of(key or site), content))

    good = vote("birch")
    wrong = [
        good,  # twice
        vote("cedar", key="mallory"),
        vote("cedar", content=vote_bytes(session.convener.session, THREE[:2])),
        vote("cedar", content=vote_bytes(other.convener.session, THREE)),
        vote("elm"),  # pinned, and no survivor
        Vote(site="cedar", signature=good.signature),
    ]
    ballot = Ballot(survivors=list(THREE), votes=[good, *wrong])
    with pytest.raises(Refused, match="2 votes for these survivors, 3 needed"):
        session.member("alder").reveal(ballot, peers_of("alder"))
    whole = Ballot(survivors=list(THREE), votes=[*wrong, vote("cedar")])
    assert session.member("alder").reveal(whole, peers_of("alder")).shares.keys() == set(THREE)


def test_for_each_member_one_share_is_revealed_and_never_both():
    session = Session(NAMES, 3)
    session.begin()
    session.deal()
    session.mask(vectors(NAMES), NAMES[:4])
    session.vote()
    held = dict(session.states["alder"].held)
    session.reveal(["alder"])
    shares = session.revealed["alder"].shares
    assert {name: shares[name] == held[name][0] for name in NAMES} == {name: name != "elm" for name in NAMES}
    assert shares["elm"] == held["elm"][1]


# Attempts.


def earlier_of(*played: Session):
    return {name: [s.states[name] for s in played if name in s.states] for name in NAMES}


def test_a_round_is_repeated_when_enough_sites_have_abandoned_the_attempt_before():
    first = ready(3, NAMES)  # nobody has voted
    values = vectors(NAMES)
    second = Session(NAMES[:3], 3, earlier=earlier_of(first))
    assert np.array_equal(second.run(values), total_of(values, NAMES[:3]))
    # and the first can be summed no more
    with pytest.raises(Refused, match="the session is 'abandoned'"):
        first.vote(["alder"])


def test_a_round_is_not_repeated_while_the_attempt_before_could_be_summed():
    first = ready(3, NAMES)
    second = Session(NAMES[1:4], 2, earlier=earlier_of(first))
    first.vote(["alder", "birch"])
    second.earlier = earlier_of(first)
    adverts = second.begin()
    # birch has voted: of five members only two have abandoned, and three are needed
    assert [len(adverts[name].abandons) for name in second.names] == [0, 1, 1]
    with pytest.raises(Refused, match="nothing is given twice") as refused:
        second.deal()
    assert refused.value.spent


def test_only_members_of_the_attempt_before_can_abandon_it():
    first = ready(2, THREE)
    first.vote()
    second = Session(NAMES, 3, earlier=earlier_of(first))
    second.begin()
    session = first.convener.session
    for name in NAMES[3:]:
        advert = second.convener._adverts[name]
        advert.abandons = [session]
        advert.signature = sign(key_of(name), advert.signed_bytes())
    with pytest.raises(Refused, match="nothing is given twice"):
        second.deal()


def test_an_attempt_that_ended_before_anything_was_masked_binds_nobody():
    first = Session()
    first.begin()
    first.deal()
    values = vectors(THREE)
    second = Session(THREE[:2], 2, earlier=earlier_of(first))
    assert np.array_equal(second.run(values), total_of(values, THREE[:2]))


def test_a_session_of_the_protocols_first_version_is_remembered_and_its_keys_are_of_no_use():
    first = ready()
    state = first.states["alder"]
    for advert in (state.advert, *state.adverts):
        advert.mask_key = advert.share_key = "5e" * 32
    state = MemberState.model_validate_json(state.model_dump_json())
    second = Session(earlier={"alder": [state]})
    second.begin()
    with pytest.raises(Refused, match="nothing is given twice"):
        second.deal()
    third = Session()
    third.begin()
    old = third.convener._adverts["birch"]
    old.mask_key = "5e" * 32
    old.signature = sign(key_of("birch"), old.signed_bytes())
    with pytest.raises(Refused, match="'birch' sent a key that agrees on nothing"):
        third.deal()


# What travels is parsed strictly.


@pytest.mark.parametrize("kind", [Advert, Adverts, Dealing, Vote, Ballot, Revealed])
@pytest.mark.parametrize("content", [None, "text", b"", b"{}", b"[1]", b"\xff", b"{" * 100_000, b"9" * 10**5])
def test_what_is_no_record_is_refused_by_name(kind, content):
    with pytest.raises(Refused) as refused:
        parse(kind, content, "birch")
    assert refused.value.site == "birch"


def test_a_record_is_the_same_after_its_way():
    session = Session()
    advert = session.begin()["alder"]
    assert parse(Advert, dump(advert), "alder") == advert
    assert occasion(2) != occasion(2)
