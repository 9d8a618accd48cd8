"""One site does not end a study of secure sums: whom enough others refuse, the round does without, and nobody else."""

from __future__ import annotations

import json

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

import client.secure.part
from client.secure.keys import make_key
from feddusss.secagg import masking, sharing
from feddusss.secagg.member import Member
from feddusss.secagg.records import sign
from server.rounds.coordinator import RoundFailed
from tests.server.rounds.test_secure import (  # noqa: F401
    FOUR,
    NAMES,
    assert_close,
    lines,
    lost,
    on,
    short,
    student,
    study,
)
from tests.server.unreliable import coordinate

FIVE = [*FOUR, {**FOUR[1], "name": "elm", "train": 12}]


def flipped(text: str) -> str:
    return text[:2] + ("1" if text[2] == "0" else "0") + text[3:]


def body(change):
    """A change of what a site's answer to a small step holds."""

    def changed(answer):
        values = json.loads(answer.content["secure"]["body"])
        change(values)
        record = ConfigRecord({"body": json.dumps(values).encode()})
        return Message(RecordDict({"secure": record}), metadata=answer.metadata)

    return changed


def accusing(*names):
    """A refusal that is laid to these sites."""

    def accuse(answer):
        told = ConfigRecord({"declined": "their keys are wrong", "accuses": list(names)})
        return Message(RecordDict({"config": told}), metadata=answer.metadata)

    return accuse


def both(*meddlers):
    def meddle(site, kind, round, answer):
        for each in meddlers:
            answer = each(site, kind, round, answer)
        return answer

    return meddle


def accepted(out, round=1):
    return {site for site, line in lines(out, round).items() if site != "*" and line["accepted"]}


def without(tmp_path, *names, hospitals=FOUR):
    """The student of the same study in which these sites were not heard of."""
    coordinate(study(hospitals, secure=False), tmp_path / "plain", on("train", lost, names))
    return student(tmp_path / "plain")


@pytest.mark.parametrize("what", ["mask_key", "share_key", "signature"])
def test_the_round_goes_on_without_a_site_whose_keys_all_others_refuse(tmp_path, what):
    wrong = on("keys", body(lambda advert: advert.update({what: flipped(advert[what])})), ["birch"])
    _, listener = coordinate(study(secure_threshold=3, retries=0), tmp_path / "secure", wrong)
    assert accepted(tmp_path / "secure") == {"alder", "cedar", "dogwood"}
    assert_close(student(tmp_path / "secure"), without(tmp_path, "birch"))
    [told] = [text for site, text in listener.refused if site == "birch" and "go on without it" in text]
    assert told.startswith("deal: refused by alder, cedar, dogwood, who") and "new public key" in told


def test_the_rounds_go_on_without_a_site_that_has_renewed_its_key_and_with_it_when_the_others_have_it(tmp_path):
    def renew(grid):
        sites = tmp_path / "secure/sites"
        renewed.append(make_key(sites / "birch/site.key", "birch", force=True))
        others = [line for line in (sites / "peers.txt").read_text().splitlines() if not line.startswith("birch")]
        (sites / "birch/peers.txt").write_text("\n".join(others))
        file = sites / "birch/site.yaml"
        file.write_text(file.read_text().replace("../peers.txt", "peers.txt"))

    def hand_on(answer):
        peers = tmp_path / "secure/sites/peers.txt"
        others = [line for line in peers.read_text().splitlines() if not line.startswith("birch")]
        peers.write_text("\n".join([*others, f"birch {renewed[0]}"]))
        return answer

    renewed: list[str] = []
    third = on("keys", hand_on, ["alder"], round=3, times=1)
    coordinate(study(secure_threshold=3, rounds=3), tmp_path / "secure", third, prepare=renew)
    assert [accepted(tmp_path / "secure", round) for round in (1, 2, 3)] == [{*NAMES} - {"birch"}] * 2 + [{*NAMES}]


@pytest.mark.parametrize("what", ["mask_key", "share_key"])
def test_a_site_that_signs_a_key_that_agrees_on_nothing_is_done_without_before_anybody_trains(
    tmp_path, monkeypatch, what
):
    begin = Member.begin.__func__

    def hostile(cls, occasion, site, key, earlier=()):
        member = begin(cls, occasion, site, key, earlier)
        if site == "birch":
            setattr(member.state.advert, what, "00" * 32)
            member.state.advert.signature = sign(key, member.state.advert.signed_bytes())
        return member

    monkeypatch.setattr(client.secure.part.Member, "begin", classmethod(hostile))
    grid, _ = coordinate(study(secure_threshold=3), tmp_path / "secure")
    assert [site for site, kind, round in grid.sent if (kind, round) == ("train", 1)] == ["alder", "cedar", "dogwood"]
    assert_close(student(tmp_path / "secure"), without(tmp_path, "birch"))


def dealing_wrongly(monkeypatch, *holders, owner="birch", round=None):
    """The owner seals for these holders what does not open, and signs that."""
    deal = Member.deal

    def hostile(self, adverts, peers, least, key, earlier=()):
        dealing = deal(self, adverts, peers, least, key, earlier)
        if self.state.site == owner and self.state.occasion.round in (round, round or self.state.occasion.round):
            dealing.sealed |= {holder: flipped(dealing.sealed[holder]) for holder in holders}
            dealing.signature = sign(key, dealing.signed_bytes(self.state.session))
        return dealing

    monkeypatch.setattr(client.secure.part.Member, "deal", hostile)


@pytest.mark.parametrize("holders", [("alder", "cedar", "dogwood"), ("alder", "cedar")])
def test_the_round_goes_on_without_a_site_that_dealt_wrong_shares_to_more_than_may_be_missing(
    tmp_path, monkeypatch, holders
):
    dealing_wrongly(monkeypatch, *holders)
    _, listener = coordinate(study(secure_threshold=3, retries=0), tmp_path / "secure")
    assert accepted(tmp_path / "secure") == {"alder", "cedar", "dogwood"}
    assert_close(student(tmp_path / "secure"), without(tmp_path, "birch"))
    assert any(
        site == "birch" and "proved that the shares it dealt are wrong" in text for site, text in listener.refused
    )


def test_for_a_wrong_share_to_one_the_round_is_tried_again_without_its_dealer_and_so_is_the_next(tmp_path, monkeypatch):
    dealing_wrongly(monkeypatch, "alder", round=1)
    out = tmp_path / "secure"
    grid, _ = coordinate(study(secure_threshold=3, rounds=3, retries=0), out)
    assert [accepted(out, round) for round in (1, 2, 3)] == [{"alder", "cedar", "dogwood"}] * 3
    assert {site for site, kind, round in grid.sent if (kind, round) == ("vote", 1)} == {"alder", "cedar", "dogwood"}
    assert {round for site, kind, round in grid.sent if (site, kind) == ("birch", "keys")} == {1}
    assert "'alder' proved" in lines(out, 2)["birch"]["reason"]


def test_whose_part_was_masked_before_the_others_refused_gives_it_again_with_other_masks_and_without_the_liar(
    tmp_path, monkeypatch
):
    dealing_wrongly(monkeypatch, "alder", "cedar", "dogwood")
    grid, _ = coordinate(study(FIVE, secure_threshold=3), tmp_path / "secure")
    assert [site for site, kind, _ in grid.sent if kind == "train"].count("elm") == 2
    assert accepted(tmp_path / "secure") == {"alder", "cedar", "dogwood", "elm"}
    assert_close(student(tmp_path / "secure"), without(tmp_path, "birch", hospitals=FIVE))


def test_for_a_share_that_was_changed_on_the_way_a_site_is_done_without_in_that_round_alone(tmp_path):
    """The dealer did not sign it: all refuse, and nobody proves anything."""
    garbled = body(lambda dealing: dealing["sealed"].update(alder=flipped(dealing["sealed"]["alder"])))
    out = tmp_path / "secure"
    _, listener = coordinate(study(secure_threshold=3, rounds=2), out, on("deal", garbled, ["birch"], round=1))
    assert [accepted(out, round) for round in (1, 2)] == [{*NAMES} - {"birch"}, {*NAMES}]
    assert any(site == "birch" and text.startswith("train: refused by alder, cedar") for site, text in listener.refused)


def test_a_site_whose_shares_would_give_no_secret_is_done_without_before_anything_is_masked(tmp_path, monkeypatch):
    deal, split = Member.deal, sharing.split

    def crooked(self, *args):
        other = lambda secret, *rest: (split(masking.new_secret(), *rest)[0], split(secret, *rest)[1])  # noqa: E731
        monkeypatch.setattr(sharing, "split", other if self.state.site == "birch" else split)
        dealing = deal(self, *args)
        monkeypatch.setattr(sharing, "split", split)
        return dealing

    monkeypatch.setattr(client.secure.part.Member, "deal", crooked)
    coordinate(study(secure_threshold=3, retries=0), tmp_path / "secure")
    assert accepted(tmp_path / "secure") == {"alder", "cedar", "dogwood"}
    assert_close(student(tmp_path / "secure"), without(tmp_path, "birch"))


@pytest.mark.parametrize("told", [b"", b"{}", b"[" * 9999, b'{"complaints": [7]}', "text", 7])
def test_a_refusal_whose_proof_is_none_is_any_refusal(tmp_path, told):
    def complain(answer):
        record = {"declined": "wrong shares", "accuses": ["alder"], "complaints": told}
        return Message(RecordDict({"config": ConfigRecord(record)}), metadata=answer.metadata)

    coordinate(study(secure_threshold=3, rounds=2), tmp_path / "secure", on("train", complain, ["cedar"], round=1))
    assert [accepted(tmp_path / "secure", round) for round in (1, 2)] == [{*NAMES} - {"cedar"}, {*NAMES}]


def test_two_sites_with_wrong_keys_are_done_without_at_once(tmp_path):
    wrong = body(lambda advert: advert.update(signature=flipped(advert["signature"])))
    meddle = on("keys", wrong, ["birch", "dogwood"])
    _, listener = coordinate(study(FIVE, secure_threshold=3, retries=0), tmp_path / "secure", meddle)
    assert accepted(tmp_path / "secure") == {"alder", "cedar", "elm"}
    assert sum("without birch, dogwood" in text for text in listener.messages) == 1
    assert_close(student(tmp_path / "secure"), without(tmp_path, "birch", "dogwood", hospitals=FIVE))


def test_others_that_refuse_a_site_wait_for_one_that_was_lost_at_that_step(tmp_path):
    wrong = body(lambda advert: advert.update(signature=flipped(advert["signature"])))
    meddle = both(on("keys", wrong, ["birch"]), on("deal", lost, ["elm"], times=1))
    coordinate(study(FIVE, secure_threshold=4), tmp_path / "secure", meddle)
    assert accepted(tmp_path / "secure") == {"alder", "cedar", "dogwood", "elm"}


@pytest.mark.parametrize(
    "lie", [accusing("alder"), accusing("alder", "birch", "cedar", "dogwood", "nobody")], ids=["one", "all"]
)
def test_one_site_that_accuses_puts_nobody_out_but_itself(tmp_path, lie):
    coordinate(study(secure_threshold=3), tmp_path / "secure", on("deal", lie, ["cedar"]))
    assert accepted(tmp_path / "secure") == {"alder", "birch", "dogwood"}
    assert_close(student(tmp_path / "secure"), without(tmp_path, "cedar"))


def test_a_site_that_accuses_an_honest_one_beside_a_liar_is_left_out_with_the_liar(tmp_path):
    wrong = body(lambda advert: advert.update(signature=flipped(advert["signature"])))
    meddle = both(on("keys", wrong, ["birch"]), on("deal", accusing("alder", "birch"), ["elm"]))
    coordinate(study(FIVE, secure_threshold=3), tmp_path / "secure", meddle)
    assert accepted(tmp_path / "secure") == {"alder", "cedar", "dogwood"}


def test_as_many_liars_as_are_fewer_than_the_threshold_put_no_honest_site_out(tmp_path):
    lie = on("deal", accusing("alder"), ["birch", "cedar"])
    coordinate(study(FIVE, secure_threshold=3), tmp_path / "five", lie)
    assert accepted(tmp_path / "five") == {"alder", "dogwood", "elm"}
    # of four, two that do not deal leave too few: the round fails, and is not had over the two and one other
    with pytest.raises(RoundFailed, match=r"(?s)birch: their keys are wrong.*cedar: their keys are wrong"):
        coordinate(study(secure_threshold=3, retries=1), tmp_path / "four", lie)


def test_no_site_is_done_without_where_too_few_would_be_left(tmp_path):
    wrong = body(lambda advert: advert.update(signature=flipped(advert["signature"])))
    meddle = on("keys", wrong, ["birch"])
    with pytest.raises(RoundFailed, match="the keys of 'birch' are not signed by its own key"):
        coordinate(study(secure_threshold=4, retries=1), tmp_path, meddle)
