"""Keys between pairs of sites, and the masks that they give.

A mask is the key stream of AES-256 in counter mode, read as 64-bit integers. Its key comes by HKDF-SHA256 from ECDH on
the curve P-256, or from the site's own seed, with the session as the salt: no key is used twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feddusss.secagg import curve
from feddusss.secagg.records import PROTOCOL, Refused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_CHUNK = 2**17
"""Integers at a time: 1 MiB of key stream."""


def new_secret() -> bytes:
    """A private key, or a seed: 32 bytes."""
    return curve.to_bytes(curve.random_number())


def public_half(secret: bytes) -> str:
    """The public key of a private one: a point."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return _private(secret).public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint).hex()


def pair_key(secret: bytes, peers_key: str, session: str, one: str, other: str) -> bytes:
    """The key of the mask between two sites, the same for both.

    Raises:
        Refused: the peer's key is no point of the curve.
    """
    first, second = sorted((one, other))
    return _derived(_agreed(secret, peers_key, other), session, "pair mask", first, second)


def sealing_key(secret: bytes, peers_key: str, session: str, owner: str, holder: str, peer: str) -> bytes:
    """The key with which `owner` seals shares for `holder`; `peer` is the one of them whose public key it is.

    Raises:
        Refused: the peer's key is no point of the curve.
    """
    return sealing_key_from(_agreed(secret, peers_key, peer), session, owner, holder)


def sealing_key_from(agreed: bytes, session: str, owner: str, holder: str) -> bytes:
    """The same from what the two agreed on."""
    return _derived(agreed, session, "sealed shares", owner, holder)


def agrees(peers_key: str) -> bool:
    """Whether a secret can be agreed on with this public key: it is a point of the curve."""
    try:
        curve.decoded(peers_key)
    except ValueError:
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
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bytes.fromhex(peers_key))
    except ValueError:
        raise Refused(f"'{peer}' sent a key that agrees on nothing", site=peer) from None
    return _private(secret).exchange(ec.ECDH(), public)


def _private(secret: bytes) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.derive_private_key(curve.from_bytes(secret), ec.SECP256R1())


def _derived(material: bytes, session: str, *purpose: str) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = "\n".join((PROTOCOL, *purpose)).encode()
    return HKDF(hashes.SHA256(), length=32, salt=bytes.fromhex(session), info=info).derive(material)
