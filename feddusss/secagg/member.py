"""A site's part in secure aggregation: five steps, each done once, in this order.

    begin     fresh keys, signed                            -> Advert
    deal      the keys of all members, checked              -> Dealing
    receive   the others' shares, opened and checked
    mask      the vector, with masks added
    vote      the set of survivors that the sum is to be of -> Vote
    reveal    after a quorum of votes: one share per member -> Revealed

Three rules make it safe against a coordinator that lies. They are kept by `MemberState`, which the site has to write to
its disk after each step and before the result leaves:

1. A site adds its masks to one vector per session.
2. It votes once per session: for one set of survivors, or (in a later `Advert.abandons`) for none at all. Shares are
   revealed only for a set with `threshold` votes, and 2 threshold is more than the number of members: so no two sets
   have them, and a session that `threshold` members have abandoned is never summed.
3. It gives a second vector for a round only if the session of the first one is abandoned in this sense. Otherwise two
   sums over different sets could be subtracted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dusss_core.config import Strict
from feddusss.secagg import complaints, masking, sharing
from feddusss.secagg.records import (
    Advert,
    Ballot,
    Complaint,
    Dealing,
    Occasion,
    Refused,
    Revealed,
    Vote,
    is_signed,
    session_digest,
    sign,
    vote_bytes,
)

if TYPE_CHECKING:
    import numpy as np
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

Stage = Literal["begun", "dealt", "received", "masked", "voted", "done", "abandoned"]


class MemberState(Strict):
    """All that a site must remember of a session. It holds secrets until the session is done or abandoned."""

    occasion: Occasion
    site: str
    stage: Stage = "begun"
    advert: Advert
    adverts: list[Advert] = Field(default_factory=list)
    session: str = ""
    gave: bool = False
    """Whether a masked vector was made, and may have left."""
    survivors: list[str] = Field(default_factory=list)
    mask_secret: str = ""
    share_secret: str = ""
    seed: str = ""
    held: dict[str, tuple[str, str]] = Field(default_factory=dict)
    """Shares by their owner, this site included: of the seed, and of the mask key."""

    @property
    def members(self) -> list[str]:
        """Names, sorted."""
        return sorted(advert.site for advert in self.adverts)

    def forget(self, stage: Stage) -> None:
        """Drop all secrets, for good."""
        self.stage, self.mask_secret, self.share_secret, self.seed, self.held = stage, "", "", "", {}


class Member:
    """One site in one session, around the state that it remembers."""

    def __init__(self, state: MemberState):
        self.state = state

    @classmethod
    def begin(
        cls, occasion: Occasion, site: str, key: EllipticCurvePrivateKey, earlier: Iterable[MemberState] = ()
    ) -> Member:
        """Join with fresh keys.

        Args:
            key: the site's own, P-384.
            earlier: sessions of the same round. Those in which the site has not voted are abandoned here.
        """
        abandons = []
        for before in earlier:
            if before.stage not in ("voted", "done"):
                before.forget("abandoned")
            if before.stage == "abandoned" and before.session:
                abandons.append(before.session)
        mask_secret, share_secret = masking.new_secret(), masking.new_secret()
        advert = Advert(
            occasion=occasion,
            site=site,
            mask_key=masking.public_half(mask_secret),
            share_key=masking.public_half(share_secret),
            abandons=sorted(abandons),
        )
        advert.signature = sign(key, advert.signed_bytes())
        return cls(
            MemberState(
                occasion=occasion,
                site=site,
                advert=advert,
                mask_secret=mask_secret.hex(),
                share_secret=share_secret.hex(),
            )
        )

    def deal(
        self,
        adverts: Iterable[Advert],
        peers: Mapping[str, EllipticCurvePublicKey],
        least: int,
        key: EllipticCurvePrivateKey,
        earlier: Iterable[MemberState] = (),
    ) -> Dealing:
        """Check the members and their keys, and share this site's two secrets among them.

        Args:
            peers: the keys that this site has pinned.
            least: the smallest threshold that this site takes part with.
            key: the site's own, P-384.
            earlier: sessions of the same round.

        Raises:
            Refused: strangers, wrong signatures, keys of another occasion or of no use: all their senders are named; a
                threshold that is too small; or a vector that this site gave earlier may still become part of a sum.
        """
        self._expect("begun")
        state = self.state
        adverts = sorted(adverts, key=lambda advert: advert.site)
        self._check_members(adverts, peers, least)
        if any(_may_be_summed(before, adverts) for before in earlier):
            raise Refused("an earlier attempt at this round may have given a sum; nothing is given twice", spent=True)
        session, threshold = session_digest(state.occasion, adverts), state.occasion.threshold
        seed = masking.new_secret()
        of_seed, seed_points = sharing.split(seed, threshold, len(adverts))
        of_key, key_points = sharing.split(bytes.fromhex(state.mask_secret), threshold, len(adverts))
        sealed = {}
        for holder, *shares in zip(adverts, of_seed, of_key, strict=True):
            if holder.site == state.site:
                state.held[state.site] = shares[0].hex(), shares[1].hex()
                continue
            sealing_key = self._sealing_key(session, state.site, holder.site, holder)
            sealed[holder.site] = sharing.seal(sealing_key, bytes.fromhex(session), b"".join(shares))
        state.adverts, state.session, state.seed, state.stage = adverts, session, seed.hex(), "dealt"
        dealing = Dealing(site=state.site, sealed=sealed, of_seed=seed_points, of_mask_key=key_points)
        dealing.signature = sign(key, dealing.signed_bytes(session))
        return dealing

    def receive(self, dealings: Iterable[Dealing], peers: Mapping[str, EllipticCurvePublicKey]) -> None:
        """Open what every other member dealt to this site.

        Args:
            peers: the keys that this site has pinned.

        Raises:
            Refused: a dealing is missing, was changed, or is of no use to all or to this site; it names the dealers of
                all such, and proves the last, which the others cannot see.
        """
        self._expect("dealt")
        state, held = self.state, dict(self.state.held)
        dealt = {dealing.site: dealing for dealing in dealings}
        if dealt.keys() != set(state.members) - {state.site}:
            raise Refused("the shares are not those of the members, each once")
        wrong: dict[str, str] = {}
        proofs: list[Complaint] = []
        for advert in state.adverts:
            if advert.site == state.site:
                continue
            try:
                held[advert.site] = self._opened(advert, dealt[advert.site], peers)
            except Refused as refused:
                wrong[advert.site] = str(refused)
                proofs += refused.complaints
        if wrong:
            raise Refused("; ".join(wrong.values()), sites=wrong, complaints=proofs)
        state.held, state.stage = held, "received"

    def mask(self, vector: np.ndarray) -> None:
        """Add this site's own mask and those between it and each other member, in place.

        Args:
            vector: uint64, flat, of the same length at all members.

        Raises:
            Refused: it was done already, in this session.
        """
        self._expect("received")
        state = self.state
        state.stage, state.gave = "masked", True
        masking.add_mask(vector, masking.self_key(bytes.fromhex(state.seed), state.session, state.site), 1)
        for advert in state.adverts:
            if advert.site != state.site:
                secret = bytes.fromhex(state.mask_secret)
                key = masking.pair_key(secret, advert.mask_key, state.session, state.site, advert.site)
                masking.add_mask(vector, key, masking.pair_sign(state.site, advert.site))
        # what remains to be done needs shares alone
        state.mask_secret = state.share_secret = state.seed = ""

    def vote(self, survivors: Iterable[str], key: EllipticCurvePrivateKey) -> Vote:
        """Sign the one set of members whose sum may be known.

        Raises:
            Refused: too few, not members, this site is not among them, or it has voted for others.
        """
        state, survivors = self.state, list(survivors)
        # the same vote again says nothing new: the answer may have been lost
        if not (state.stage == "voted" and sorted(survivors) == state.survivors):
            self._expect("masked")
        if len(set(survivors)) != len(survivors) or not set(survivors) <= set(state.members):
            raise Refused("the survivors are not members of the session, each once")
        if state.site not in survivors:
            raise Refused("this site is not among the survivors that it is asked to vote for")
        if len(survivors) < state.occasion.threshold:
            raise Refused(f"{len(survivors)} survivors, {state.occasion.threshold} needed")
        state.survivors, state.stage = sorted(survivors), "voted"
        return Vote(site=state.site, signature=sign(key, vote_bytes(state.session, survivors)))

    def reveal(self, ballot: Ballot, peers: Mapping[str, EllipticCurvePublicKey]) -> Revealed:
        """For each survivor the share of its seed, for each other member that of its mask key; never both.

        Raises:
            Refused: not the set that this site voted for, too few votes for it, or it was done already.
        """
        self._expect("voted")
        state = self.state
        if sorted(ballot.survivors) != state.survivors:
            raise Refused("the votes are for other survivors than those that this site voted for")
        content = vote_bytes(state.session, state.survivors)
        voters = {state.site}
        for vote in ballot.votes:
            # only survivors vote, and only with keys that this site has pinned
            known = vote.site in state.survivors and vote.site in peers
            if known and is_signed(peers[vote.site], vote.signature, content):
                voters.add(vote.site)
        if len(voters) < state.occasion.threshold:
            raise Refused(f"{len(voters)} votes for these survivors, {state.occasion.threshold} needed")
        shares = {
            owner: of_seed if owner in state.survivors else of_key for owner, (of_seed, of_key) in state.held.items()
        }
        state.forget("done")
        return Revealed(site=state.site, shares=shares)

    def _opened(self, advert: Advert, dealing: Dealing, peers: Mapping[str, EllipticCurvePublicKey]) -> tuple[str, str]:
        """The two shares that a member dealt to this site, in hex.

        Raises:
            Refused: they are of no use. With a complaint, where nobody but this site can see that.
        """
        owner, state = advert.site, self.state
        # the file of peers may have been changed since
        if owner not in peers or not is_signed(peers[owner], dealing.signature, dealing.signed_bytes(state.session)):
            raise Refused(f"the shares of '{owner}' are not signed by its own key", site=owner)
        if fault := sharing.fault_of(dealing, state.members, state.occasion.threshold, advert.mask_key):
            raise Refused(fault, site=owner)
        key = self._sealing_key(state.session, owner, state.site, advert)
        number = 1 + state.members.index(state.site)
        try:
            shares = sharing.opened(dealing, state.site, number, key, state.session)
        except Refused as refused:
            secret = bytes.fromhex(state.share_secret)
            proof = complaints.complain(owner, advert.share_key, state.site, secret, state.session)
            raise Refused(str(refused), site=owner, complaints=[proof]) from None
        return shares[0].hex(), shares[1].hex()

    def _expect(self, stage: Stage) -> None:
        if self.state.stage != stage:
            raise Refused(
                f"this step was done, or is not due: the session is '{self.state.stage}', not '{stage}'",
                spent=self.state.gave,
            )

    def _check_members(self, adverts: list[Advert], peers: Mapping[str, EllipticCurvePublicKey], least: int) -> None:
        state, names = self.state, [advert.site for advert in adverts]
        if len(set(names)) != len(names) or state.advert not in adverts:
            raise Refused("the members are not this site, with the keys that it gave, and others, each once")
        wrong = {advert.site: why for advert in adverts if (why := self._fault_of(advert, peers))}
        if wrong:
            raise Refused("; ".join(wrong.values()), sites=wrong)
        threshold = state.occasion.threshold
        if threshold < least:
            raise Refused(f"a threshold of {threshold}; this site takes part with {least} or more")
        if not len(names) < 2 * threshold <= 2 * len(names):
            raise Refused(f"a threshold of {threshold} with {len(names)} members: it must be more than half of them")

    def _fault_of(self, advert: Advert, peers: Mapping[str, EllipticCurvePublicKey]) -> str:
        """What is wrong with a member's keys; empty: nothing."""
        site, state = advert.site, self.state
        if site == state.site:
            return ""
        if site not in peers:
            return f"'{site}' is not among the peers whose keys this site knows"
        if not is_signed(peers[site], advert.signature, advert.signed_bytes()):
            return f"the keys of '{site}' are not signed by its own key"
        if advert.occasion != state.occasion:
            return f"the keys of '{site}' are of another occasion"
        # a mask key is used only when the site has trained: too late to do without its owner
        if not (masking.agrees(advert.mask_key) and masking.agrees(advert.share_key)):
            return f"'{site}' sent a key that agrees on nothing"
        return ""

    def _sealing_key(self, session: str, owner: str, holder: str, peer: Advert) -> bytes:
        secret = bytes.fromhex(self.state.share_secret)
        return masking.sealing_key(secret, peer.share_key, session, owner, holder, peer.site)


def default_threshold(sites: int) -> int:
    """More than two thirds: then a third of the sites may help a lying coordinator, and nothing is learnt."""
    return max(2, 2 * sites // 3 + 1)


def _may_be_summed(before: MemberState, adverts: Iterable[Advert]) -> bool:
    """Whether a vector that this site gave in an earlier session may still become part of a sum."""
    if not before.gave:
        return False
    abandoned = {advert.site for advert in adverts if before.session in advert.abandons} & set(before.members)
    return len(abandoned) < before.occasion.threshold
