"""Numbers as integers modulo 2^64, whose sums are exact.

A number is rounded to a multiple of 2^-30, so it errs by at most 2^-31 (4.7e-10), and so does any weighted mean. What
does not fit is refused and never clipped. Each site has an equal part of the range, and half of the integers are left
unused: a sum outside of +-2^62 can only come from masks that do not cancel.
"""

from __future__ import annotations

import numpy as np

FRACTION_BITS = 30
_MOST = 2**62
"""Largest absolute value of a sum."""


class OutOfRange(ValueError):
    """A number does not fit the fixed-point range, or a sum is outside of it."""


def largest(weight: int, members: int, bits: int = FRACTION_BITS) -> float:
    """The largest absolute value that `encode` takes."""
    return _MOST / members / weight / 2**bits


def encode(values: np.ndarray, weight: int, members: int, bits: int = FRACTION_BITS) -> np.ndarray:
    """`weight` times the rounded values.

    Args:
        values: floats or integers of any shape.
        weight: the site's weight in the mean, at least 1.
        members: how many sites there are in the sum at most.
        bits: of the fraction; 0 for whole numbers.

    Returns:
        uint64, flat: two's complement.

    Raises:
        OutOfRange: a value is not finite, or larger than `largest`.
    """
    with np.errstate(over="ignore"):
        scaled = np.asarray(values, dtype=np.float64).ravel() * 2.0**bits
    if not np.isfinite(scaled).all():
        raise OutOfRange("a number is not finite")
    scaled = np.rint(scaled, out=scaled)
    # in Python's integers: the product of two floats near the limit would be rounded
    if scaled.size and int(np.abs(scaled).max()) * weight > _MOST // members:
        raise OutOfRange(f"a number is larger than {largest(weight, members, bits):.6g}")
    return (scaled.astype(np.int64) * np.int64(weight)).view(np.uint64)


def decode(total: np.ndarray, weight: int, bits: int = FRACTION_BITS) -> np.ndarray:
    """The weighted mean in a sum of encoded vectors.

    Args:
        total: uint64.
        weight: the sum of the weights.

    Returns:
        float64, as `total` in shape.

    Raises:
        OutOfRange: no sum of numbers that fit gives this.
    """
    signed = total.view(np.int64)
    if signed.size and not (int(signed.min()) >= -_MOST and int(signed.max()) <= _MOST):
        raise OutOfRange("the sum is outside of the range of sums: masks did not cancel")
    return signed / (float(weight) * 2.0**bits)
