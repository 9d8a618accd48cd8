"""Keys between pairs of sites, and the masks that they give.

A mask is the key stream of AES-256 in counter mode, read as 64-bit integers. Its key comes by HKDF-SHA256 from X25519
agreement, or from the site's own seed, with the session as the salt: no key is used twice.
"""

from __future__ import annotations

import numpy as np

from feddusss.secagg.records import PROTOCOL, Refused

_CHUNK = 2**17
"""Integers at a time: 1 MiB of key stream."""


def new_secret() -> bytes:
    """A private X25519 key, 32 bytes."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.generate().private_bytes_raw()


def public_half(secret: bytes) -> str:
    """The public key of a private one, in hex."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw().hex()


def pair_key(secret: bytes, peers_key: str, session: str, one: str, other: str) -> bytes:
    """The key of the mask between two sites, the same for both.

    Raises:
        Refused: the peer's key is a point of small order.
    """
    first, second = sorted((one, other))
    return _derived(_agreed(secret, peers_key, other), session, "pair mask", first, second)


def sealing_key(secret: bytes, peers_key: str, session: str, owner: str, holder: str, peer: str) -> bytes:
    """The key with which `owner` seals shares for `holder`; `peer` is the one of them whose public key it is.

    Raises:
        Refused: the peer's key is a point of small order.
    """
    return _derived(_agreed(secret, peers_key, peer), session, "sealed shares", owner, holder)


def agrees(peers_key: str) -> bool:
    """Whether a secret can be agreed on with this public key: it is no point of small order."""
    try:
        _agreed(new_secret(), peers_key, "")
    except Refused:
        return False
    return True


def self_key(seed: bytes, session: str, site: str) -> bytes:
    """The key of a site's mask of its own."""
    return _derived(seed, session, "self mask", site)


def add_mask(vector: np.ndarray, key: bytes, sign: int) -> None:
    """Add (`sign` 1) or subtract (-1) the mask of `key`, modulo 2^64, in place.

    Args:
        vector: uint64, flat.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    zeros = bytes(8 * min(_CHUNK, len(vector)))
    for start in range(0, len(vector), _CHUNK):
        part = vector[start : start + _CHUNK]
        mask = np.frombuffer(stream.update(zeros[: 8 * len(part)]), dtype="<u8")
        if sign > 0:
            part += mask
        else:
            part -= mask


def pair_sign(site: str, peer: str) -> int:
    """Whether `site` adds (1) or subtracts (-1) the mask between itself and `peer`: one of two does either."""
    return 1 if site < peer else -1


def _agreed(secret: bytes, peers_key: str, peer: str) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    try:
        public = X25519PublicKey.from_public_bytes(bytes.fromhex(peers_key))
        return X25519PrivateKey.from_private_bytes(secret).exchange(public)
    except ValueError:
        raise Refused(f"'{peer}' sent a key that agrees on nothing", site=peer) from None


def _derived(material: bytes, session: str, *purpose: str) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = "\n".join((PROTOCOL, *purpose)).encode()
    return HKDF(hashes.SHA256(), length=32, salt=bytes.fromhex(session), info=info).derive(material)
