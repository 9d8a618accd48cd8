"""What a site says instead of an answer: the one error whose text travels."""

from __future__ import annotations

from collections.abc import Iterable

from dusss_core.outside import shown


class Declined(Exception):
    """The site does not do what was asked. The reason travels, so it never speaks of the site's data or paths.

    Args:
        reason: one sentence. What it quotes of a message is shortened and escaped.
        abstains: the site cannot take part in the phase at all, and that is no failure.
        diverged: training gave a loss or weights that are not finite.
        spent: under secure aggregation: the site's part of the round was given, and is not given twice.
        lacks: the site does not hold the model that the message tells a change of; it can be sent the whole one.
        exhausted: it takes more memory than there is; with smaller batches it may not.
        lost: what the site was doing is lost, for no fault of the message: asked again, it may do it.
        accuses: under secure aggregation: the sites whose keys or shares are wrong, and why it refuses.
        complaints: proofs of that (`feddusss.secagg.records.Complaints`); empty: there are none.
    """

    def __init__(
        self,
        reason: str,
        *,
        abstains: bool = False,
        diverged: bool = False,
        spent: bool = False,
        lacks: bool = False,
        exhausted: bool = False,
        lost: bool = False,
        accuses: Iterable[str] = (),
        complaints: bytes = b"",
    ):
        super().__init__(shown(reason))
        self.abstains = abstains
        self.diverged = diverged
        self.spent = spent
        self.lacks = lacks
        self.exhausted = exhausted
        self.lost = lost
        self.accuses = list(accuses)
        self.complaints = complaints
