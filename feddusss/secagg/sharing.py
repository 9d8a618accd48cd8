"""Secrets, shared among sites so that each can check its own share (Feldman, FOCS 1987), and sealed for their holders.

A secret is a number s modulo the order q of P-256, a polynomial f of degree t - 1 over these numbers with f(0) = s is
drawn, and the i-th holder has f(i). The owner publishes a_k G for each coefficient a_k. Holder i sees that

    f(i) G = sum over k of i^k (a_k G)

so any t holders that are content can put together one and the same s, which is that of s G. Fewer learn of s what s G
tells, of which nobody can compute s.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

from feddusss.secagg import curve
from feddusss.secagg.records import Dealing, Refused

_NONCE_BYTES = 12


def split(secret: bytes, threshold: int, holders: int) -> tuple[list[bytes], list[str]]:
    """Shares of a secret, by holder in order, and the points that they fit; any `threshold` of them give it back.

    Args:
        secret: a number from 1, of `curve`.

    Returns:
        Shares of 32 bytes; `threshold` points, of which the first is that of the secret.
    """
    if not 1 < threshold <= holders:
        raise ValueError(f"{threshold} of {holders} shares")
    coefficients = [curve.from_bytes(secret), *(curve.random_number() for _ in range(threshold - 1))]
    shares = []
    for holder in range(1, holders + 1):
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * holder + coefficient) % curve.ORDER
        shares.append(curve.to_bytes(value))
    return shares, [curve.encoded(curve.times_base(coefficient)) for coefficient in coefficients]


def fits(share: bytes, holder: int, points: Sequence[str]) -> bool:
    """Whether this is the share of the holder with this number, from 1.

    Args:
        points: of the curve.
    """
    try:
        number = curve.from_bytes(share)
    except ValueError:
        return False
    *others, expected = (curve.decoded(point) for point in points)
    for point in reversed(others):
        expected = expected * holder + point
    return curve.times_base(number) == expected


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret that `threshold` shares give; by holder's number, from 1. They were held to `fits` before."""
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares, {threshold} needed")
    used, secret = sorted(shares)[:threshold], 0
    for holder in used:
        # Lagrange's weight of f(holder) in f(0)
        above = below = 1
        for other in used:
            if other != holder:
                above = above * other % curve.ORDER
                below = below * (other - holder) % curve.ORDER
        secret += curve.from_bytes(shares[holder]) * above * pow(below, -1, curve.ORDER)
    return curve.to_bytes(secret)


def fault_of(dealing: Dealing, members: Collection[str], threshold: int, mask_key: str) -> str:
    """What anybody can see to be wrong with a member's dealing; empty: nothing.

    Args:
        members: all of the session.
        mask_key: the public one that the dealer gave before.
    """
    if dealing.sealed.keys() != set(members) - {dealing.site}:
        return f"'{dealing.site}' dealt shares for other members"
    if len(dealing.of_seed) != threshold or len(dealing.of_mask_key) != threshold:
        return f"'{dealing.site}' dealt shares of which {threshold} are too few, or too many"
    try:
        for point in (*dealing.of_seed, *dealing.of_mask_key):
            curve.decoded(point)
    except ValueError:
        return f"'{dealing.site}' dealt shares that fit no points of the curve"
    if dealing.of_mask_key[0] != mask_key:
        return f"the shares that '{dealing.site}' dealt do not give its mask key"
    return ""


def opened(dealing: Dealing, holder: str, number: int, key: bytes, session: str) -> tuple[bytes, bytes]:
    """The holder's shares of the dealer's seed and of its mask key.

    Args:
        dealing: without a fault that anybody can see.
        number: the holder's, from 1.
        key: with which they are sealed.

    Raises:
        Refused: they do not open, or do not fit.
    """
    owner = dealing.site
    shares = unseal(key, bytes.fromhex(session), dealing.sealed[holder], owner)
    if not all(map(fits, shares, (number, number), (dealing.of_seed, dealing.of_mask_key))):
        raise Refused(f"'{owner}' dealt shares that do not fit what it published", site=owner)
    return shares


def seal(key: bytes, about: bytes, shares: bytes) -> str:
    """Shares encrypted and authenticated with AES-256-GCM; `about` is authenticated too."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(_NONCE_BYTES)
    return (nonce + AESGCM(key).encrypt(nonce, shares, about)).hex()


def unseal(key: bytes, about: bytes, sealed: str, owner: str) -> tuple[bytes, bytes]:
    """The two shares in what `seal` made.

    Raises:
        Refused: they were not sealed by `owner` with this key.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    content = bytes.fromhex(sealed)
    try:
        shares = AESGCM(key).decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], about)
    except InvalidTag:
        raise Refused(f"the shares of '{owner}' do not open", site=owner) from None
    return shares[: curve.NUMBER_BYTES], shares[curve.NUMBER_BYTES :]
