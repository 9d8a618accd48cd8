"""The arithmetic that shares and complaints need: numbers modulo the order of the curve P-256, and its points.

A number travels as 32 bytes, big-endian; a point compressed (SEC 1), as 66 digits of hex. Points are PyCryptodome's.
"""

from __future__ import annotations

import secrets
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from Crypto.PublicKey.ECC import EccPoint

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""q, of the group of points (SEC 2, secp256r1); a prime."""
NUMBER_BYTES = 32
_NAME = "P-256"


def random_number() -> int:
    """Uniform in 1 to q - 1."""
    return 1 + secrets.randbelow(ORDER - 1)


def to_bytes(number: int) -> bytes:
    """A number as it travels."""
    return (number % ORDER).to_bytes(NUMBER_BYTES, "big")


def from_bytes(content: bytes) -> int:
    """The number in what `to_bytes` made.

    Raises:
        ValueError: another length, or not below q.
    """
    number = int.from_bytes(content, "big")
    if len(content) != NUMBER_BYTES or number >= ORDER:
        raise ValueError("no number modulo the curve's order")
    return number


def times_base(number: int) -> EccPoint:
    """`number` G."""
    return _base() * number


def encoded(point: EccPoint) -> str:
    """A point as it travels; that at infinity has no form.

    Raises:
        ValueError: that at infinity.
    """
    if point.is_point_at_infinity():
        raise ValueError("the point at infinity")
    x, y = (int(value) for value in point.xy)
    return f"0{2 + y % 2}{x:064x}"


@lru_cache(maxsize=4096)
def decoded(text: str) -> EccPoint:
    """The point in what `encoded` made, not to be changed in place. Kept, since finding y takes as long as an addition.

    Raises:
        ValueError: no point of the curve.
    """
    from Crypto.PublicKey import ECC

    return ECC.import_key(bytes.fromhex(text), curve_name=_NAME).pointQ


def x_of(point: EccPoint) -> bytes:
    """The x coordinate, which is what ECDH agrees on (SEC 1, 3.3.1)."""
    return int(point.x).to_bytes(NUMBER_BYTES, "big")


@cache
def _base() -> EccPoint:
    from Crypto.PublicKey import ECC

    return ECC.construct(curve=_NAME, d=1).pointQ
