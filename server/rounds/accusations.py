"""What members of a secure sum say of each other, and whom a round is to do without (docs/secure_aggregation.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from feddusss.secagg.convener import Convener, found_out
from feddusss.secagg.records import Complaints, Refused, parse
from server.rounds.replies import LOST, Reply

_REMEDIES = {
    "deal": "if its key is new, it sends them its new public key for their peers.txt; else do without it "
    "(federation.sites)",
    "train": "the shares that it dealt are wrong; if that goes on, do without it (federation.sites)",
}
"""For a site that the others refuse at a step."""


@dataclass(frozen=True)
class Judged:
    """What refusals of a step come to."""

    out: dict[str, str]
    """Members to do without, and what is said of them."""
    right: set[str]
    """Members that refuse none but those who are out, or may be when all were heard: they are asked again."""


def proofs(convener: Convener, refusals: Mapping[str, Reply]) -> dict[str, str]:
    """Members of which a refusal proves that they dealt wrong shares, and what is said of them.

    Args:
        refusals: of members that did not train, by name.
    """
    proved = {}
    for name, reply in refusals.items():
        try:
            told = parse(Complaints, reply.complaints, name).complaints if reply.complaints else []
        except Refused:
            continue  # nothing is proved, and the refusal counts as any other
        # one of each dealer, so that a list without end costs no time
        for complaint in {complaint.owner: complaint for complaint in told}.values():
            if convener.proves(name, complaint):
                proved[complaint.owner] = (
                    f"train: '{name}' proved that the shares it dealt are wrong; the rounds go on without it until the "
                    "study is resumed (--resume)"
                )
    return proved


def judge(step: str, convener: Convener, refusals: Mapping[str, Reply], proved: Mapping[str, str]) -> Judged:
    """Whom to do without: members of whom it is proved, and those that enough others accuse.

    Args:
        refusals: of members that did not take the step, by name.
        proved: as `proofs` gives them.
    """
    members, threshold = set(convener.members), convener.occasion.threshold
    accusations = {name: reply.accuses & members - {name} for name, reply in refusals.items()}
    lost = {name for name, reply in refusals.items() if reply.kind == LOST}
    out = {name: proved[name] for name in sorted(members & proved.keys())}
    left = members - out.keys()
    accused = found_out(accusations, left, threshold)
    # members that were lost may accuse the same
    perhaps = out.keys() | accused.keys() | found_out(accusations | dict.fromkeys(lost, left), left, threshold).keys()
    for name, accusers in accused.items():
        out[name] = f"{step}: refused by {', '.join(sorted(accusers))}, who go on without it: {_REMEDIES[step]}"
    right = {name for name, others in accusations.items() if others and others <= perhaps} - out.keys()
    return Judged(out, right)
