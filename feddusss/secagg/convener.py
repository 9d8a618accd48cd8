"""The coordinator's part in secure aggregation: it passes on what members tell each other, and unmasks a sum.

It can check less than the members, since it has no pinned keys: what it checks is there to name the site that made a
sum fail, not to protect anybody. The members protect themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from feddusss.secagg import complaints, masking, sharing
from feddusss.secagg.records import (
    Advert,
    Adverts,
    Ballot,
    Complaint,
    Dealing,
    Deliveries,
    Occasion,
    Refused,
    Revealed,
    Vote,
    session_digest,
)


def found_out(
    accusations: Mapping[str, Collection[str]], members: Collection[str], threshold: int
) -> dict[str, set[str]]:
    """The members that a session is to be repeated without: each refused by `threshold` others that stay.

    So those that stay are enough for a sum, and fewer than `threshold` liars have no honest site put out.

    Args:
        accusations: by member, whom it refuses. Anything may stand there: names of no member, and its own.

    Returns:
        Whom to do without, the most accused first, and who of the others accuses it.
    """
    left, out = set(members), {}
    while left:
        accusers = {name: {one for one in left - {name} if name in accusations.get(one, ())} for name in sorted(left)}
        worst = max(accusers, key=lambda name: len(accusers[name]))
        if len(accusers[worst]) < threshold:
            break
        out[worst] = accusers[worst]
        left.remove(worst)
    return out


class Convener:
    """One session: from the members' keys to the sum of the survivors' vectors."""

    def __init__(self, occasion: Occasion, adverts: Iterable[Advert]):
        self.occasion = occasion
        self._adverts = {advert.site: advert for advert in adverts}
        self.session = session_digest(occasion, self._adverts.values())
        self._dealings: dict[str, Dealing] = {}
        self._sum: np.ndarray | None = None
        self._survivors: list[str] = []
        self._votes: dict[str, Vote] = {}
        self._revealed: dict[str, Revealed] = {}

    @property
    def members(self) -> list[str]:
        """Names, sorted."""
        return sorted(self._adverts)

    @property
    def survivors(self) -> list[str]:
        """Members whose masked vector is in the sum, sorted."""
        return sorted(self._survivors)

    def adverts(self) -> Adverts:
        """What every member is told of the others."""
        return Adverts(adverts=[self._adverts[site] for site in self.members])

    def take_dealing(self, site: str, dealing: Dealing) -> None:
        """Take in a member's shares.

        Raises:
            Refused: not for these members, or shares that cannot give its secrets.
        """
        if dealing.site != site:
            raise Refused(f"'{site}' dealt the shares of another", site=site)
        mask_key, threshold = self._adverts[site].mask_key, self.occasion.threshold
        if fault := sharing.fault_of(dealing, self.members, threshold, mask_key):
            raise Refused(fault, site=site)
        self._dealings[site] = dealing

    def deliveries(self, holder: str) -> Deliveries:
        """What the others dealt."""
        return Deliveries(dealings=[dealt for owner, dealt in sorted(self._dealings.items()) if owner != holder])

    def proves(self, holder: str, complaint: Complaint) -> bool:
        """Whether a member's complaint shows that another dealt wrong shares to it."""
        owner = complaint.owner
        if holder not in self._adverts or owner not in self._dealings or owner == holder:
            return False
        keys = self._adverts[owner].share_key, holder, self._adverts[holder].share_key
        agreed = complaints.agreed_by(complaint, *keys, self.session)
        if agreed is None:
            return False
        key = masking.sealing_key_from(agreed, self.session, owner, holder)
        try:
            sharing.opened(self._dealings[owner], holder, self._number(holder), key, self.session)
        except Refused:
            return True
        return False

    def add(self, site: str, vector: np.ndarray) -> None:
        """Add a member's masked vector to the sum.

        Args:
            vector: uint64, flat, all of one length.

        Raises:
            Refused: no member, one that is in the sum already, or a vector of another length.
        """
        if site not in self._adverts or site in self._survivors:
            raise Refused(f"'{site}' is no member, or is in the sum already", site=site)
        if self._sum is None:
            self._sum = np.zeros(len(vector), dtype=np.uint64)
        if len(vector) != len(self._sum):
            raise Refused(f"'{site}' sent {len(vector)} numbers instead of {len(self._sum)}", site=site)
        self._sum += vector
        self._survivors.append(site)

    def take_vote(self, site: str, vote: Vote) -> None:
        """Take in a survivor's vote, which only the members can check.

        Raises:
            Refused: in another's name.
        """
        if vote.site != site or site not in self._survivors:
            raise Refused(f"'{site}' sent a vote that is not its own", site=site)
        self._votes[site] = vote

    def ballot(self) -> Ballot:
        """The survivors, and the votes for them so far."""
        return Ballot(survivors=self.survivors, votes=[self._votes[site] for site in sorted(self._votes)])

    def take_revealed(self, site: str, revealed: Revealed) -> None:
        """Take in a survivor's shares, each checked against what its owner published.

        Raises:
            Refused: a share is missing, or is not the one that was dealt.
        """
        if revealed.site != site or revealed.shares.keys() != set(self.members):
            raise Refused(f"'{site}' sent shares of other members", site=site)
        for owner, share in revealed.shares.items():
            dealing = self._dealings[owner]
            points = dealing.of_seed if owner in self._survivors else dealing.of_mask_key
            if not sharing.fits(bytes.fromhex(share), self._number(site), points):
                raise Refused(f"'{site}' sent a share that '{owner}' did not deal to it", site=site)
        self._revealed[site] = revealed

    def total(self) -> np.ndarray:
        """The sum of the survivors' vectors, modulo 2^64; masks are taken off in place, once.

        Raises:
            Refused: too few shares.
        """
        if self._sum is None or len(self._revealed) < self.occasion.threshold:
            raise Refused(f"shares of {len(self._revealed)} sites, {self.occasion.threshold} needed")
        seeds = {site: self._secret(site) for site in self.survivors}
        lost = {site: self._secret(site) for site in self.members if site not in self._survivors}
        for site, seed in seeds.items():
            masking.add_mask(self._sum, masking.self_key(seed, self.session, site), -1)
        for gone, secret in lost.items():
            for site in self.survivors:
                key = masking.pair_key(secret, self._adverts[site].mask_key, self.session, gone, site)
                masking.add_mask(self._sum, key, -masking.pair_sign(site, gone))
        total, self._sum = self._sum, None
        return total

    def _secret(self, owner: str) -> bytes:
        """A survivor's seed, or another member's mask key."""
        shares = {
            self._number(site): bytes.fromhex(revealed.shares[owner]) for site, revealed in self._revealed.items()
        }
        return sharing.combine(shares, self.occasion.threshold)

    def _number(self, site: str) -> int:
        """A holder's, from 1."""
        return 1 + self.members.index(site)
