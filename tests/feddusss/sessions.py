"""A little federation for the protocol alone: members, a coordinator, and what it sees. No Flower, no torch."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from feddusss.secagg import masking
from feddusss.secagg.convener import Convener
from feddusss.secagg.member import Member, MemberState
from feddusss.secagg.records import Advert, Ballot, Dealing, Occasion, Revealed, Vote, dump, parse

NAMES = ("alder", "birch", "cedar", "dogwood", "elm")
LENGTH = 4096


@cache
def key_of(name: str) -> ec.EllipticCurvePrivateKey:
    """A site's long-lived key."""
    return ec.generate_private_key(ec.SECP384R1())


def peers_of(name: str, names: Iterable[str] = NAMES) -> dict[str, ec.EllipticCurvePublicKey]:
    """The keys that a site has pinned."""
    return {other: key_of(other).public_key() for other in names if other != name}


def occasion(threshold: int, **changes) -> Occasion:
    """An attempt of its own at round 1."""
    values = {"run": "ab" * 16, "phase": "segment", "round": 1, "attempt": secrets.token_hex(16), "task": "0" * 64}
    return Occasion(threshold=threshold, **{**values, **changes})


def vectors(names: Iterable[str], length: int = LENGTH, seed: int = 0) -> dict[str, np.ndarray]:
    """Small numbers, as updates are: nothing like the masks."""
    draw = np.random.default_rng(seed)
    return {name: draw.integers(-(2**35), 2**35, length).view(np.uint64) for name in names}


def total_of(values: Mapping[str, np.ndarray], names: Iterable[str]) -> np.ndarray:
    return np.sum([values[name] for name in names], axis=0, dtype=np.uint64)


@dataclass
class Session:
    """One session step by step; a test may do the steps itself, and change what travels.

    Each member's state goes through JSON after each step, as it does at a site.
    """

    names: tuple[str, ...] = NAMES[:3]
    threshold: int = 3
    least: int = 2
    about: Occasion | None = None
    earlier: Mapping[str, list[MemberState]] = field(default_factory=dict)
    relay: Callable = lambda kind, site, record: record
    """What the coordinator makes of an advert, dealing, delivery, ballot or revealed record on its way; `site` is who
    sent it, or for delivery and ballot who gets it."""

    def __post_init__(self):
        self.about = self.about or occasion(self.threshold)
        self.states: dict[str, MemberState] = {}
        self.convener: Convener | None = None
        self.masked: dict[str, np.ndarray] = {}
        self.revealed: dict[str, Revealed] = {}

    def member(self, name: str) -> Member:
        return Member(self.states[name])

    def begin(self) -> dict[str, Advert]:
        adverts = {}
        for name in self.names:
            member = Member.begin(self.about, name, key_of(name), self.earlier.get(name, ()))
            self._keep(member)
            adverts[name] = self._sent("advert", name, member.state.advert)
        self.convener = Convener(self.about, adverts.values())
        return adverts

    def deal(self) -> None:
        for name in self.names:
            member = self.member(name)
            adverts = self.convener.adverts().adverts
            dealing = member.deal(adverts, peers_of(name), self.least, key_of(name), self.earlier.get(name, ()))
            self._keep(member)
            self.convener.take_dealing(name, self._sent("dealing", name, dealing))

    def mask(self, values: Mapping[str, np.ndarray], names: Iterable[str] | None = None, add: bool = True) -> None:
        """Have members mask their vectors; with `add` the coordinator takes them into the sum."""
        for name in names if names is not None else self.names:
            member = self.member(name)
            dealings = self.convener.deliveries(name).dealings
            member.receive([self._sent("delivery", name, dealing) for dealing in dealings], peers_of(name))
            vector = values[name].copy()
            member.mask(vector)
            self._keep(member)
            self.masked[name] = vector.copy()
            if add:
                self.convener.add(name, vector)

    def vote(self, names: Iterable[str] | None = None) -> None:
        for name in names if names is not None else self.convener.survivors:
            member = self.member(name)
            vote = member.vote(self.convener.survivors, key_of(name))
            self._keep(member)
            self.convener.take_vote(name, self._sent("vote", name, vote))

    def reveal(self, names: Iterable[str] | None = None) -> None:
        ballot = self.convener.ballot()
        for name in names if names is not None else [vote.site for vote in ballot.votes]:
            member = self.member(name)
            revealed = member.reveal(self._sent("ballot", name, ballot), peers_of(name))
            self._keep(member)
            self.revealed[name] = self._sent("revealed", name, revealed)
            self.convener.take_revealed(name, self.revealed[name])

    def run(self, values: Mapping[str, np.ndarray], survivors: Iterable[str] | None = None) -> np.ndarray:
        """All steps; the others drop out while they train."""
        self.begin()
        self.deal()
        self.mask(values, survivors)
        self.vote()
        self.reveal()
        return self.convener.total()

    def _keep(self, member: Member) -> None:
        self.states[member.state.site] = MemberState.model_validate_json(member.state.model_dump_json())

    def _sent(self, kind: str, site: str, record):
        changed = self.relay(kind, site, record)
        return parse(_KINDS[kind], dump(changed), site)


_KINDS = {
    "advert": Advert,
    "dealing": Dealing,
    "delivery": Dealing,
    "vote": Vote,
    "ballot": Ballot,
    "revealed": Revealed,
}


def reduced(session: Session, name: str) -> np.ndarray:
    """A member's masked vector without every mask that the coordinator can compute from what it was sent.

    It has what it relayed, and the secrets that the revealed shares give: seeds of the survivors, and mask keys of
    those that dropped out, from which follow the masks between these and everybody.
    """
    convener, vector = session.convener, session.masked[name].copy()
    gone = set(convener.members) - set(convener.survivors)
    if name not in gone:
        masking.add_mask(vector, masking.self_key(convener._secret(name), convener.session, name), -1)
    for other in set(convener.members) - {name}:
        if name in gone or other in gone:
            holder, peer = (name, other) if name in gone else (other, name)
            public = convener._adverts[peer].mask_key
            key = masking.pair_key(convener._secret(holder), public, convener.session, holder, peer)
            masking.add_mask(vector, key, -masking.pair_sign(name, other))
    return vector


def looks_uniform(vector: np.ndarray, worst: float = 1e-9) -> bool:
    """Whether the bytes of uint64 numbers could be drawn uniformly: a chi-square test of each of the eight places."""
    from scipy.stats import chisquare

    places = vector.copy().view(np.uint8).reshape(-1, 8)
    return all(chisquare(np.bincount(places[:, at], minlength=256)).pvalue > worst for at in range(8))
