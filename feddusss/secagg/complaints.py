"""A holder's proof that a dealer sealed wrong shares for it, which tells of no other share.

Shares are sealed with a key that follows from the point Z = h D on which holder (number h, public H = h G) and dealer
(public D) agree. The holder shows Z, and that it is the right one: that the logarithm of H to base G is that of Z to
base D (Chaum and Pedersen, CRYPTO 1992, made non-interactive by a hash). Then anybody opens the shares and sees.

Z opens what these two sealed for each other, and no more: shares of the holder that the dealer has anyway, and the
wrong ones. The dealing is signed by its dealer, so nobody else can make a holder complain of it.
"""

from __future__ import annotations

import hashlib

from feddusss.secagg import curve
from feddusss.secagg.records import PROTOCOL, Complaint


def complain(owner: str, owners_key: str, holder: str, secret: bytes, session: str) -> Complaint:
    """The holder's word about what `owner` dealt to it.

    Args:
        owners_key: the dealer's public key for sealing, a point of the curve.
        secret: the holder's own of that kind.
    """
    number, once, base = curve.from_bytes(secret), curve.random_number(), curve.decoded(owners_key)
    holders_key, agreed = curve.encoded(curve.times_base(number)), curve.encoded(base * number)
    shown = curve.encoded(curve.times_base(once)), curve.encoded(base * once)
    challenge = _challenge(session, owner, owners_key, holder, holders_key, agreed, *shown)
    response = (once - challenge * number) % curve.ORDER
    return Complaint(
        owner=owner,
        agreed=agreed,
        challenge=curve.to_bytes(challenge).hex(),
        response=curve.to_bytes(response).hex(),
    )


def agreed_by(complaint: Complaint, owners_key: str, holder: str, holders_key: str, session: str) -> bytes | None:
    """What ECDH gives holder and dealer, if the complaint proves it; else None.

    Args:
        owners_key, holders_key: their public keys for sealing, points of the curve.
    """
    try:
        agreed, challenge = curve.decoded(complaint.agreed), curve.from_bytes(bytes.fromhex(complaint.challenge))
        response = curve.from_bytes(bytes.fromhex(complaint.response))
        shown = (
            curve.encoded(curve.times_base(response) + curve.decoded(holders_key) * challenge),
            curve.encoded(curve.decoded(owners_key) * response + agreed * challenge),
        )
    except ValueError:
        return None
    told = _challenge(session, complaint.owner, owners_key, holder, holders_key, complaint.agreed, *shown)
    return curve.x_of(agreed) if told == challenge else None


def _challenge(session: str, *about: str) -> int:
    content = "\n".join((PROTOCOL, "complaint", session, *about)).encode()
    return int.from_bytes(hashlib.sha256(content).digest(), "big") % curve.ORDER
