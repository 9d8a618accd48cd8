"""A site that deals wrong shares is found out by their holder before it masks, and nobody else is taken for it."""

from __future__ import annotations

import numpy as np
import pytest

from feddusss.secagg import complaints, curve, masking, sharing
from feddusss.secagg.member import Member
from feddusss.secagg.records import Refused, sign
from tests.feddusss.sessions import NAMES, Session, key_of, peers_of, total_of, vectors
from tests.feddusss.test_liars import THREE, flipped


def test_shares_of_a_site_that_is_pinned_no_more_are_refused_by_name():
    session = Session()
    session.begin()
    session.deal()
    dealings = session.convener.deliveries("alder").dealings
    with pytest.raises(Refused, match="shares of 'cedar' are not signed by its own key"):
        session.member("alder").receive(dealings, peers_of("alder", THREE[:2]))


CHANGES = {
    "sealed": lambda dealing: {**dealing.sealed, "birch": flipped(dealing.sealed["birch"])},
    "of_seed": lambda dealing: [*dealing.of_seed[:-1], curve.encoded(curve.times_base(7))],
    "of_mask_key": lambda dealing: [*dealing.of_mask_key[:-1], curve.encoded(curve.times_base(7))],
    "signature": lambda dealing: flipped(dealing.signature),
}


@pytest.mark.parametrize("what", CHANGES)
def test_shares_that_were_changed_on_the_way_are_refused_by_all_by_name_and_nobody_complains(what):
    def relay(kind, site, record):
        if kind == "delivery" and record.site == "cedar":
            return record.model_copy(update={what: CHANGES[what](record)})
        return record

    session = Session(relay=relay)
    session.begin()
    session.deal()
    for name in ("alder", "birch"):
        with pytest.raises(Refused, match="shares of 'cedar' are not signed by its own key") as refused:
            session.mask(vectors(THREE), [name])
        assert refused.value.site == "cedar" and not refused.value.complaints


def dealing_of(change, owner="cedar"):
    """The dealer itself deals otherwise, and signs it."""

    def relay(kind, site, record):
        if kind == "dealing" and site == owner:
            record = record.model_copy(update=change(record))
            session = relay.session.states[owner].session
            record.signature = sign(key_of(owner), record.signed_bytes(session))
        return record

    session = relay.session = Session(relay=relay)
    session.begin()
    return session


def crooked(monkeypatch, *, points):
    """The dealer shares other secrets than its own, and publishes what fits the former, or the latter (`points`)."""
    deal, split = Member.deal, sharing.split

    def other_split(secret, *rest):
        shares, fitting = split(masking.new_secret(), *rest)
        return shares, fitting if points == "of the shares" else split(secret, *rest)[1]

    def other_deal(self, *args):
        monkeypatch.setattr(sharing, "split", other_split if self.state.site == "cedar" else split)
        dealing = deal(self, *args)
        monkeypatch.setattr(sharing, "split", split)
        return dealing

    monkeypatch.setattr(Member, "deal", other_deal)


def test_shares_of_another_secret_than_the_mask_key_are_seen_by_all_and_by_the_coordinator(monkeypatch):
    crooked(monkeypatch, points="of the shares")
    session = Session()
    session.begin()
    with pytest.raises(Refused, match="'cedar' dealt do not give its mask key") as refused:
        session.deal()
    assert refused.value.site == "cedar"
    # a coordinator that hands them on all the same gets nothing
    monkeypatch.setattr(sharing, "fault_of", lambda *_: "")
    session = Session()
    session.begin()
    session.deal()
    monkeypatch.undo()
    for name in ("alder", "birch"):
        with pytest.raises(Refused, match="'cedar' dealt do not give its mask key"):
            session.mask(vectors(THREE), [name])


@pytest.mark.parametrize(
    "change",
    [
        lambda dealing: {"of_seed": dealing.of_seed[:-1]},
        lambda dealing: {"of_mask_key": [*dealing.of_mask_key, dealing.of_mask_key[0]]},
        lambda dealing: {"sealed": {"alder": dealing.sealed["alder"]}},
        lambda dealing: {"of_seed": ["02" + "ff" * 32, *dealing.of_seed[1:]]},
    ],
    ids=["too few points", "too many", "not for all", "no points"],
)
def test_a_dealing_that_anybody_can_see_to_be_of_no_use_goes_no_further_than_the_coordinator(change):
    session = dealing_of(change)
    with pytest.raises(Refused, match="'cedar' dealt shares") as refused:
        session.deal()
    assert refused.value.site == "cedar"


def test_shares_that_do_not_fit_what_was_published_are_found_by_every_holder_before_it_masks(monkeypatch):
    crooked(monkeypatch, points="of the secret")
    session = Session()
    session.begin()
    session.deal()
    for name in ("alder", "birch"):
        with pytest.raises(Refused, match="'cedar' dealt shares that do not fit what it published") as refused:
            session.mask(vectors(THREE), [name])
        (complaint,) = refused.value.complaints
        assert session.convener.proves(name, complaint)
        # and by whom it is not, it proves nothing
        assert not session.convener.proves({"alder": "birch", "birch": "alder"}[name], complaint)


def sealing_wrongly(dealing):
    return {"sealed": {**dealing.sealed, "birch": flipped(dealing.sealed["birch"])}}


def test_a_holder_proves_that_a_share_does_not_open_and_the_others_mask():
    session = dealing_of(sealing_wrongly)
    session.deal()
    session.mask(vectors(THREE), ["alder"])
    with pytest.raises(Refused, match="shares of 'cedar' do not open") as refused:
        session.mask(vectors(THREE), ["birch"])
    assert session.convener.proves("birch", refused.value.complaints[0])


def test_for_a_site_that_gives_the_key_of_another_as_its_own_nobody_masks():
    """Complaints of it would open what the other one sealed: so it must not be able to seal for anybody."""
    session = Session()
    adverts = session.begin()
    stolen = session.states["cedar"].advert
    stolen.share_key = adverts["birch"].share_key
    stolen.signature = sign(key_of("cedar"), stolen.signed_bytes())
    session.convener._adverts["cedar"] = stolen
    session.deal()
    for name in ("alder", "birch"):
        with pytest.raises(Refused, match="shares of 'cedar' do not open"):
            session.mask(vectors(THREE), [name])


def complaint_about(session, owner, holder="birch", secret=None):
    state = session.states[holder]
    key = secret or bytes.fromhex(state.share_secret)
    return complaints.complain(owner, session.convener._adverts[owner].share_key, holder, key, state.session)


def test_nothing_is_proved_of_a_dealer_that_dealt_well():
    session = Session()
    session.begin()
    session.deal()
    assert not session.convener.proves("birch", complaint_about(session, "cedar"))


@pytest.mark.parametrize("lie", ["another key", "agreed", "challenge", "response", "session", "of itself", "of nobody"])
def test_a_complaint_that_lies_proves_nothing(lie):
    session = dealing_of(sealing_wrongly)
    session.deal()
    good = complaint_about(session, "cedar")
    assert session.convener.proves("birch", good)
    other = curve.encoded(curve.times_base(7))
    told = {
        "another key": lambda: complaint_about(session, "cedar", secret=masking.new_secret()),
        "agreed": lambda: good.model_copy(update={"agreed": other}),
        "challenge": lambda: good.model_copy(update={"challenge": flipped(good.challenge)}),
        "response": lambda: good.model_copy(update={"response": "f" * 64}),
        "session": lambda: complaints.complain(
            "cedar",
            session.convener._adverts["cedar"].share_key,
            "birch",
            bytes.fromhex(session.states["birch"].share_secret),
            "5e" * 32,
        ),
        "of itself": lambda: complaint_about(session, "birch"),
        "of nobody": lambda: good.model_copy(update={"owner": "nobody"}),
    }[lie]()
    assert not session.convener.proves("birch", told)


def test_a_complaint_tells_nothing_but_what_the_two_sealed_for_each_other():
    session = dealing_of(sealing_wrongly)
    session.deal()
    agreed = bytes.fromhex(complaint_about(session, "cedar").agreed[2:])
    opens = set()
    for owner, dealing in session.convener._dealings.items():
        for holder, sealed in dealing.sealed.items():
            key = masking.sealing_key_from(agreed, session.convener.session, owner, holder)
            try:
                sharing.unseal(key, bytes.fromhex(session.convener.session), sealed, owner)
            except Refused:
                continue
            opens.add((owner, holder))
    # what cedar sealed for birch opens for nobody
    assert opens == {("birch", "cedar")}


def test_a_share_that_is_missing_keeps_a_site_from_masking():
    session = Session()
    session.begin()
    session.deal()
    del session.convener._dealings["cedar"]
    with pytest.raises(Refused, match="shares are not those of the members"):
        session.mask(vectors(THREE), ["alder"])


@pytest.mark.parametrize("owner", ["alder", "elm"])
def test_a_revealed_share_that_was_not_dealt_is_refused_and_the_sum_is_had_without_it(owner):
    def relay(kind, site, record):
        if kind == "revealed" and site == "birch":
            return record.model_copy(update={"shares": {**record.shares, owner: flipped(record.shares[owner])}})
        return record

    values = vectors(NAMES)
    session = Session(NAMES, 3, relay=relay)
    session.begin()
    session.deal()
    session.mask(values, NAMES[:4])
    session.vote()
    with pytest.raises(Refused, match=f"'birch' sent a share that '{owner}' did not deal to it") as refused:
        session.reveal(["birch"])
    assert refused.value.site == "birch"
    session.reveal(["alder", "cedar", "dogwood"])
    assert np.array_equal(session.convener.total(), total_of(values, NAMES[:4]))
