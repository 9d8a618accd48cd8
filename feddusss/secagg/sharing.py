"""Secrets of 32 bytes, shared among sites (Shamir 1979), each share sealed for its holder and committed to.

The field arithmetic is PyCryptodome's, over 16 bytes; a secret is two of them, with polynomials of their own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from feddusss.secagg.records import PROTOCOL, Refused

SECRET_BYTES = 32
_NONCE_BYTES = 12


def split(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """Shares of a secret, 32 bytes each, by holder in order. Any `threshold` of them give it back."""
    from Crypto.Protocol.SecretSharing import Shamir

    if len(secret) != SECRET_BYTES or not 1 < threshold <= holders:
        raise ValueError(f"a secret of {len(secret)} bytes, {threshold} of {holders} shares")
    first, second = (Shamir.split(threshold, holders, half) for half in (secret[:16], secret[16:]))
    return [a + b for (_, a), (_, b) in zip(first, second, strict=True)]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret that `threshold` shares give; by holder's number, from 1. Wrong shares give a wrong secret."""
    from Crypto.Protocol.SecretSharing import Shamir

    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares, {threshold} needed")
    # exactly as many as the polynomial needs: any more only cost time
    used = sorted(shares.items())[:threshold]
    return b"".join(Shamir.combine([(holder, share[half]) for holder, share in used]) for half in _HALVES)


def commitment(session: str, what: str, owner: str, holder: str, secret: bytes) -> str:
    """SHA-256 that binds a site to a share, or (with itself as the holder) to its seed.

    What is committed to is 32 random bytes, so the hash hides it.
    """
    about = "\n".join((PROTOCOL, "commitment", session, what, owner, holder)).encode()
    return hashlib.sha256(about + b"\n" + secret).hexdigest()


def seal(key: bytes, about: bytes, shares: bytes) -> str:
    """Shares encrypted and authenticated with AES-256-GCM; `about` is authenticated too."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(_NONCE_BYTES)
    return (nonce + AESGCM(key).encrypt(nonce, shares, about)).hex()


def unseal(key: bytes, about: bytes, sealed: str, owner: str) -> tuple[bytes, bytes]:
    """The two shares in what `seal` made.

    Raises:
        Refused: changed on the way, or not from `owner`.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    content = bytes.fromhex(sealed)
    try:
        shares = AESGCM(key).decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], about)
    except InvalidTag:
        raise Refused(f"the shares of '{owner}' were changed on the way", site=owner) from None
    return shares[:SECRET_BYTES], shares[SECRET_BYTES:]


_HALVES = (slice(0, 16), slice(16, 32))
