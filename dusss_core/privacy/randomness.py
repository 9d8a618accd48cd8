"""Random numbers that nobody can repeat: the noise of private training, its draws, and its augmentation.

Whoever can guess the noise can subtract it. torch's CPU generator uses 32 bits of its seed, so all its noises can be
tried; and a seed in a config file is known. The numbers here are the key stream of AES-256 in counter mode under a key
from the operating system, which is stored nowhere.

Epsilon assumes real arithmetic. The normals are sums of four, because a single Box-Muller number in floating point
betrays what was added to it (Mironov 2012; Holohan and Braghin 2021).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dusss_core.transfer import sent

_BITS = 53
_CHUNK = 1 << 15
"""Normals at a time: what is worked on stays in the processor's cache."""
_BLOCK = 1 << 20
"""Normals that are kept in float64 at a time."""


class Randomness:
    """A stream of its own for each instance and each process."""

    def __init__(self):
        self._new_key()

    def uniforms(self, count: int) -> np.ndarray:
        """`count` float64 in [0, 1), multiples of 2^-53."""
        return self._integers(count) * 2.0**-_BITS

    def normals(self, count: int) -> np.ndarray:
        """`count` independent standard normals, float64: half the sum of four by Box and Muller."""
        out = np.empty(count)
        for start in range(0, count, _CHUNK):
            part = out[start : start + _CHUNK]
            part[:] = self._sums_of_four((len(part) + 1) // 2)[: len(part)]
        return out

    def poisson_draw(self, count: int, rate: float) -> np.ndarray:
        """`count` bool, each True with probability `rate`, independently.

        Whole numbers are compared: the probability is `rate` rounded up to a multiple of 2^-53.
        """
        return self._integers(count) < np.uint64(np.ceil(rate * 2.0**_BITS))

    def groups(self, count: int, groups: int) -> np.ndarray:
        """`count` int64 in [0, groups), each drawn independently, whatever the others got."""
        return (self.uniforms(count) * groups).astype(np.int64)

    def generator(self) -> torch.Generator:
        """A CPU generator for augmentation, which needs no secrecy. Never for noise."""
        return torch.Generator().manual_seed(int(self._integers(1)[0] >> np.uint64(_BITS - 32)))

    def noise_like(self, tensors: Sequence[Tensor], std: float) -> list[Tensor]:
        """Independent normals of standard deviation `std` in the shapes of `tensors`, which share dtype and device.

        Drawn in one row: a network has dozens of tensors of a few numbers, and each draw has its price.
        """
        sizes = [tensor.numel() for tensor in tensors]
        row = torch.empty(sum(sizes), dtype=tensors[0].dtype)
        for part in row.split(_BLOCK):
            part.copy_(torch.from_numpy(std * self.normals(len(part))))
        parts = sent(tensors[0].device, row)[0].split(sizes)
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def _integers(self, count: int) -> np.ndarray:
        """`count` uint64 below 2^53."""
        if os.getpid() != self._process:  # a forked process would go on with its parent's stream
            self._new_key()
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype="<u8") >> np.uint64(64 - _BITS)

    def _sums_of_four(self, pairs: int) -> np.ndarray:
        """2 x pairs normals. torch's logarithms and cosines are twice as fast as numpy's."""
        first, second = torch.from_numpy(self.uniforms(8 * pairs)).view(2, 4, pairs)
        # 1 - u lies in (0, 1], where the logarithm is finite; half a radius, since four normals have a variance of four
        radius = (1 - first).log_().mul_(-0.5).sqrt_()
        angle = second.mul_(2 * math.pi)
        return torch.cat([(radius * angle.cos()).sum(0), (radius * angle.sin()).sum(0)]).numpy()

    def _new_key(self) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._process = os.getpid()
        self._cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
