"""A site under secure aggregation: what it masks, what it refuses, what it keeps on its disk and for how long."""

from __future__ import annotations

import hashlib
import json
import stat

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from flwr.app import ConfigRecord

from client.answer import answer
from client.door.audit import LOG, verify
from client.preflight import machine
from client.privacy import paid
from client.privacy.ledger import Ledger
from client.secure.part import FOLDER
from client.secure.peers import read_peers
from client.state.store import SiteState
from client.work.workbench import forget
from dusss_core.errors import UserError
from feddusss import wire
from feddusss.secagg.convener import Convener
from feddusss.secagg.fixedpoint import FRACTION_BITS
from feddusss.secagg.member import Member
from feddusss.secagg.records import Advert, Complaints, Dealing, Revealed, Vote, dump, parse, sign, task_digest
from sites.config import load_site
from tests.client import fake_private
from tests.client.conftest import RUN_KEY, declined, make_content, tensors_of
from tests.feddusss.sessions import key_of, looks_uniform, occasion, peers_of
from tests.server.conftest import make_study

THREE = ("alder", "birch", "cedar")
OTHERS = THREE[1:]


def public_line(name: str) -> str:
    key = key_of(name).public_key()
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    return f"{name} {line} a comment\n"


@pytest.fixture
def alder(fake, site_file):
    """The file of a site that has pinned two others."""
    return pinned(site_file)


def pinned(site_file, **settings):
    key = key_of("alder").private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    path = site_file.parent / "site.key"
    path.write_bytes(key)
    path.chmod(0o600)
    (site_file.parent / "peers.txt").write_text("# hospitals\n" + "".join(map(public_line, THREE)))
    values = {"key": "site.key", "peers": "peers.txt", **settings}
    site_file.write_text(site_file.read_text() + f"secure_aggregation: {json.dumps(values)}\n")
    return site_file


class Round:
    """One attempt at a round: alder is the client under test, the others are played here, and so is the coordinator."""

    relay = staticmethod(lambda name, dealing: dealing)
    """What a test makes of another's dealing."""

    def __init__(
        self, site_file, round=1, threshold=3, others=OTHERS, weighting="examples", earlier=(), run=None, study=None
    ):
        self.site_file, self.round, self.weighting, self.others = site_file, round, weighting, others
        self.told = {"round": round, "run_key": run or RUN_KEY, "study": study}
        self.content = make_content(**self.told)
        settings = self.content["config"]["training"]
        task = task_digest(
            training=hashlib.sha256(settings.encode()).hexdigest(),
            phase="segment",
            vlm="",
            vlm_round=0,
            weighting=weighting,
            model=hashlib.sha256(wire.content(self.content["arrays"])).hexdigest(),
        )
        self.about = occasion(threshold, run=run or RUN_KEY, round=round, task=task)
        self.earlier = {name: [was.members[name].state for was in earlier if name in was.members] for name in others}
        self.members: dict[str, Member] = {}

    def ask(self, step, body=b"{}", content=None, **record):
        content = content or (self.content if step == "train" else make_content(arrays=False, **self.told))
        record = {"step": step, "attempt": self.about.attempt, "body": body, "weighting": self.weighting, **record}
        content["secure"] = ConfigRecord(record)
        return answer("train" if step == "train" else "query", content, self.site_file)

    def taken(self, kind, reply):
        assert declined(reply) is None, declined(reply)
        return parse(kind, reply["secure"]["body"], "alder")

    def keys(self):
        for name in self.others:
            self.members[name] = Member.begin(self.about, name, key_of(name), self.earlier[name])
        adverts = [member.state.advert for member in self.members.values()]
        self.convener = Convener(self.about, [*adverts, self.taken(Advert, self.ask("keys", dump(self.about)))])
        return self

    def deal(self):
        adverts = self.convener.adverts()
        for name, member in self.members.items():
            dealing = member.deal(adverts.adverts, peers_of(name), 2, key_of(name), self.earlier[name])
            self.convener.take_dealing(name, self.relay(name, dealing))
        self.convener.take_dealing("alder", self.taken(Dealing, self.ask("deal", dump(adverts))))
        return self

    def train(self, **changes):
        self.answer = self.ask("train", dump(self.convener.deliveries("alder")), **changes)
        return self

    def sum(self, length):
        """The sum with the others' vectors, which are zero."""
        self.convener.add("alder", flat(self.answer))
        for name, member in self.members.items():
            member.receive(self.convener.deliveries(name).dealings, peers_of(name))
            vector = np.zeros(length, dtype=np.uint64)
            member.mask(vector)
            self.convener.add(name, vector)
        survivors = self.convener.survivors
        for name, member in self.members.items():
            self.convener.take_vote(name, member.vote(survivors, key_of(name)))
        self.convener.take_vote("alder", self.taken(Vote, self.ask("vote", dump(self.convener.ballot()))))
        ballot = self.convener.ballot()
        for name, member in self.members.items():
            self.convener.take_revealed(name, member.reveal(ballot, peers_of(name)))
        self.convener.take_revealed("alder", self.taken(Revealed, self.ask("reveal", dump(ballot))))
        return self.convener.total()


def flat(reply):
    tensors = tensors_of(reply)
    return np.concatenate([tensors[name].numpy().ravel() for name in sorted(tensors)]).view(np.uint64)


def kept(site_file) -> str:
    return (site_file.parent / "state" / FOLDER / f"{RUN_KEY}-segment.json").read_text()


def test_the_sum_holds_this_sites_update_times_its_pictures(alder):
    plain = tensors_of(answer("train", make_content(), unpinned(alder)))
    forget()
    round = Round(alder).keys().deal().train()
    total = round.sum(len(flat(round.answer))).view(np.int64)
    before = tensors_of(make_content())
    start = 0
    for name in sorted(before):
        bits = FRACTION_BITS if before[name].is_floating_point() else 0
        change = (plain[name].double() - before[name].double()).numpy().ravel()
        part = total[start : start + change.size] / 2.0**bits
        assert np.abs(part / 16 - change).max() <= 2.0**-31, name  # 16 training pictures
        start += change.size


def test_what_a_private_site_masks_is_what_its_ledger_paid_for(private, site_file, monkeypatch):
    released, keep = [], paid._keep_answer
    monkeypatch.setattr(paid, "_keep_answer", lambda request, answer: released.append(answer) or keep(request, answer))
    private.site(site_file)
    round = Round(pinned(site_file)).keys().deal().train()
    total = round.sum(len(flat(round.answer))).view(np.int64)
    [answer], before, start = released, tensors_of(make_content()), 0
    noised = tensors_of(answer)
    for name in sorted(before):
        bits = FRACTION_BITS if before[name].is_floating_point() else 0
        change = (noised[name].double() - before[name].double()).numpy().ravel()
        part = total[start : start + change.size] / 2.0**bits
        assert np.abs(part / fake_private.RECORDS - change).max() <= 2.0**-31, name
        start += change.size


def test_the_sum_of_a_round_cannot_be_had_once_a_later_one_has_begun(alder):
    first = Round(alder).keys().deal().train()
    Round(alder, round=2).keys()
    for step in ("train", "vote", "reveal"):
        assert "of a later round" in declined(first.ask(step)), step
    with pytest.raises(AssertionError, match="of a later round"):
        first.sum(len(flat(first.answer)))


def unpinned(site_file):
    """The same site, with a state of its own and without secure aggregation."""
    other = site_file.with_name("plain.yaml")
    lines = site_file.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("secure_aggregation")]
    other.write_text("\n".join(kept).replace("state_dir: state", "state_dir: state_plain") + "\n")
    return other


def test_what_leaves_is_integers_that_look_uniform_and_the_figures_as_before(alder):
    answers = [Round(alder, round).keys().deal().train().answer for round in range(1, 13)]
    assert looks_uniform(np.concatenate([flat(reply) for reply in answers]))
    assert {str(tensor.dtype) for tensor in tensors_of(answers[0]).values()} == {"torch.int64"}
    assert {"num-examples", "val.dice", "train.loss"} <= set(answers[0]["metrics"])


def test_the_audit_log_says_that_masked_tensors_left_and_with_whom(alder):
    round = Round(alder).keys().deal().train()
    round.sum(len(flat(round.answer)))
    log = alder.parent / "state" / "audit.jsonl"
    assert verify(log).broken is None
    answers = [
        entry["fields"] for text in log.read_text().splitlines() if (entry := json.loads(text))["event"] == "answer"
    ]
    assert [fields["secure"] for fields in answers] == ["keys", "deal", "masked", "vote", "reveal"]
    assert answers[2]["members"] == list(THREE)
    assert {told["dtype"] for told in answers[2]["tensors"].values()} == {"I64"}
    assert answers[3]["texts"]["body"].split()[1] == "bytes,"


def test_secrets_are_on_the_disk_for_their_owner_only_and_no_longer_than_needed(alder):
    round = Round(alder).keys().deal()
    path = alder.parent / "state" / FOLDER / f"{RUN_KEY}-segment.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    state = json.loads(kept(alder))["sessions"][0]
    secrets = [state["mask_secret"], state["share_secret"], state["seed"], *state["held"]["alder"]]
    assert all(len(secret) == 64 for secret in secrets)
    round.train()
    assert not [secret for secret in secrets[:3] if secret in kept(alder)]
    round.sum(len(flat(round.answer)))
    assert not [secret for secret in secrets if secret in kept(alder)]
    assert json.loads(kept(alder))["sessions"][0]["held"] == {}


def test_a_part_whose_state_could_not_be_kept_can_be_given_later(alder, monkeypatch):
    round, save = Round(alder).keys().deal(), SiteState.save
    monkeypatch.setattr(SiteState, "save", lambda *_: 1 / 0)
    assert declined(round.train().answer).startswith("ZeroDivisionError")
    monkeypatch.setattr(SiteState, "save", save)
    assert declined(round.train().answer) is None


def test_each_step_can_be_taken_by_another_process(alder):
    round = Round(alder)
    for step in (round.keys, round.deal, round.train):
        step()
        forget()
    assert len(round.sum(len(flat(round.answer))))


# What it refuses.


def test_a_site_that_gives_sums_only_declines_a_plain_study(alder):
    reply = answer("train", make_content(), alder)
    assert "secure sums alone" in declined(reply) and reply["config"]["abstains"] is True
    assert not list((alder.parent / "state").rglob("segment-*"))
    optional = alder.read_text().replace('"peers"', '"required": false, "peers"')
    alder.write_text(optional)
    assert declined(answer("train", make_content(), alder)) is None


def test_a_site_without_peers_takes_no_part(fake, site_file):
    reply = Round(site_file).ask("keys")
    assert "no peers" in declined(reply) and reply["config"]["abstains"] is True


def test_a_wrong_share_is_refused_before_training_with_a_proof_that_is_in_the_audit_log(alder):
    def relay(name, dealing):
        if name == "birch":
            dealing.sealed["alder"] = dealing.sealed["alder"][:-2] + "00"
            dealing.signature = sign(key_of(name), dealing.signed_bytes(round.members[name].state.session))
        return dealing

    round = Round(alder).keys()
    round.relay = relay
    reply = round.deal().train().answer
    assert declined(reply) == "the shares of 'birch' do not open" and reply["config"]["accuses"] == ["birch"]
    sent = reply["config"]["complaints"]
    (complaint,) = parse(Complaints, sent, "alder").complaints
    assert round.convener.proves("alder", complaint)
    last = (alder.parent / "state" / LOG).read_text().splitlines()[-1]
    assert json.loads(last)["fields"]["complaints"] == sent.decode()
    assert not list((alder.parent / "state").rglob("segment-*.safetensors"))
    assert set(reply["config"]) == {"declined", "abstains", "diverged", "accuses", "complaints", "audit_head"}


def test_a_model_that_the_others_were_not_told_of_is_not_trained(alder):
    round = Round(alder).keys().deal()
    other = make_content(study=make_study(method={"preset": "mean_teacher"}).training().model_copy(update={"seed": 5}))
    other["config"]["training"] = round.content["config"]["training"]
    round.train(content=other)
    assert "not those that all sites of the sum were told of" in declined(round.answer)
    assert not list((alder.parent / "state").rglob("segment-*.safetensors"))


@pytest.mark.parametrize("change", ["training", "weighting"])
def test_settings_that_the_others_were_not_told_of_are_not_trained(alder, change):
    round = Round(alder).keys().deal()
    if change == "training":
        values = json.loads(round.content["config"]["training"])
        values["segment"]["optimizer"]["lr"] = 0.05
        round.content["config"]["training"] = json.dumps(values)
    else:
        round.weighting = "uniform"
    assert "not those that all sites" in declined(round.train().answer)


def test_a_masked_update_is_given_once_and_shares_are_revealed_once(alder):
    round = Round(alder).keys().deal().train()
    assert declined(round.answer) is None
    assert "was done" in declined(round.train().answer)
    assert round.answer["config"]["spent"] is True
    round = Round(alder, round=2).keys().deal().train()
    round.sum(len(flat(round.answer)))
    assert "was done" in declined(round.ask("reveal", dump(round.convener.ballot())))


def test_after_the_vote_the_round_is_not_given_to_another_sum(alder):
    first = Round(alder).keys().deal().train()
    first.sum(len(flat(first.answer)))
    with pytest.raises(AssertionError, match="nothing is given twice"):
        Round(alder).keys().deal()  # the others do as if there had been no first attempt
    Round(alder, round=2).keys()
    assert "later round" in declined(Round(alder, round=1).ask("keys"))


def test_the_same_round_is_not_given_in_another_run(alder, monkeypatch):
    first = Round(alder).keys().deal().train()
    first.sum(len(flat(first.answer)))
    monkeypatch.setattr("tests.client.secure.test_secure.RUN_KEY", "cd" * 16)
    again = Round(alder)
    content = make_content(arrays=False, run_key="cd" * 16)
    content["secure"] = ConfigRecord({"step": "keys", "attempt": again.about.attempt, "body": dump(again.about)})
    reply = answer("query", content, alder)
    assert "change the study's seed" in declined(reply)
    assert "spent" not in reply["config"]  # no round that the coordinator may skip: the study must be changed


def test_a_round_that_was_abandoned_is_given_again_with_other_masks(alder):
    first = Round(alder).keys().deal().train()
    for member in first.members.values():  # had shares, and were never asked for a vote
        assert member.state.stage == "dealt"
    second = Round(alder, earlier=[first]).keys().deal().train()
    assert declined(second.answer) is None
    assert not set(flat(first.answer)) & set(flat(second.answer))
    assert "is 'abandoned'" in declined(first.ask("vote", dump(first.convener.ballot())))


def test_an_update_that_does_not_fit_is_refused_and_not_clipped(alder, fake, monkeypatch):
    train = fake.Segmenter.train_round

    def explode(self, round):
        metrics = train(self, round)
        self.model["scale"] = self.model["scale"] * 1e30
        return metrics

    monkeypatch.setattr(fake.Segmenter, "train_round", explode)
    round = Round(alder).keys().deal().train()
    assert "the update of 'scale' does not fit into the secure sum" in declined(round.answer)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"step": "unmask"}, "not one"),
        ({"step": 7}, "not one"),
        ({"attempt": "../../x"}, "not one"),
        ({"attempt": "ab" * 16}, "does not know the attempt"),
        ({"weighting": "mine"}, "not one"),
        ({"step": "train"}, "not one"),
        ({"body": b"[]"}, "not as it should be"),
        ({"body": "x" * 100}, "no record"),
    ],
)
def test_a_part_that_is_none_is_declined(alder, record, reason):
    round = Round(alder).keys()
    content = make_content(arrays=False)
    content["secure"] = ConfigRecord({"step": "deal", "attempt": round.about.attempt, "body": b"{}", **record})
    assert reason in declined(answer("query", content, alder))


def test_a_state_that_cannot_be_read_stops_the_site(alder):
    Round(alder).keys()
    (alder.parent / "state" / FOLDER / f"{RUN_KEY}-segment.json").write_text("{")
    assert declined(Round(alder).ask("keys", dump(Round(alder).about))) is not None


def test_the_default_threshold_of_a_site_is_more_than_two_thirds_of_its_peers_and_itself(alder):
    with pytest.raises(AssertionError, match="takes part with 3 or more"):
        Round(alder, threshold=2).keys().deal()


# With differential privacy.


def test_a_private_site_pays_once_for_a_round_that_is_masked_twice(private, site_file):
    private.site(site_file)
    pinned(site_file)
    first = Round(site_file).keys().deal().train()
    assert set(first.answer["metrics"]) == {"num-examples", "ledger-charges"}
    second = Round(site_file, earlier=[first]).keys().deal().train()
    assert declined(second.answer) is None and second.answer["metrics"]["ledger-charges"] == 1
    site = load_site(site_file)
    assert len(Ledger(site.state_dir, site.privacy).entries()) == 1


# Pinned keys.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no other site"),
        ("birch nonsense\n", "line 1: not a site's name and its P-384 public key"),
        (public_line("birch") + public_line("birch"), "line 2: 'birch' or its key is there already"),
        (public_line("birch") + "elm" + public_line("birch")[5:], "two sites never share a key"),
        ("alder" + public_line("birch")[5:], "another key for 'alder', which is this site"),
        ("birch" + public_line("alder")[5:], "this site's key under the name 'birch'"),
    ],
)
def test_a_file_of_peers_that_cannot_be_meant_is_refused_with_a_remedy(alder, text, reason):
    (alder.parent / "peers.txt").write_text(text)
    with pytest.raises(UserError) as refused:
        read_peers(load_site(alder))
    assert reason in str(refused.value)


def test_peers_are_read_without_this_site(alder):
    assert set(read_peers(load_site(alder))) == {"birch", "cedar"}


def test_the_preflight_shows_who_is_pinned_and_how_to_compare(alder):
    (finding,) = machine.peers(load_site(alder))
    assert finding.level == "ok" and "birch, cedar; sums of 3 sites or more" in finding.message
    assert "ssh-keygen -lf" in finding.message
    alder.write_text(alder.read_text().replace('"key"', '"threshold": 4, "key"'))
    (finding,) = machine.peers(load_site(alder))
    assert finding.level == "error" and "there are 3 with this one" in finding.message and finding.remedy
