"""Answers that wait for the end of their round on the disk, so that memory does not grow with the number of sites.

They have to wait: whether an update is too large is known when all are there, and so is a site's weight in the mean.
The answers of a round lie in one file, each in its place, as plain numbers: the tensors of the model, sorted by type
and name, one after the other. Those of the next round are written over them, which costs a fraction of fresh room. The
file has no name: the system takes it away when it is closed or its process ends, however it ends. A run that was killed
leaves nothing behind, and nothing is read that an earlier process wrote.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dusss_core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


_MOST_BUFFERS = 1024
"""Linux takes no more in one call."""


class Spool:
    """The answers of one round, and then of the next. Close it when the phase is over.

    Args:
        folder: a folder on the disk that the answers are to lie on.
        model: names, shapes and types that every answer has.

    Raises:
        UserError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, model: Mapping[str, Tensor]):
        self._folder = Path(folder)
        self.places = Places(model)
        self._answers = 0
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115, `close` closes it
        except OSError as error:
            raise self._full(error) from error

    def empty(self) -> None:
        """A new round begins: the answers so far are not needed any more."""
        self._answers = 0

    def put(self, tensors: Mapping[str, Tensor]) -> Spooled:
        """Write one answer; it is read again by way of what is returned, until the spool is emptied or closed.

        Raises:
            UserError: disk full.
        """
        try:
            self._write([_bytes_of(tensors[name]) for name in self.places.order if tensors[name].numel()])
        except OSError as error:
            raise self._full(error) from error
        self._answers += 1
        return Spooled(self, self._answers - 1)

    def close(self) -> None:
        """Let all answers go."""
        self._file.close()

    def read(self, answer: int, start: int, into: np.ndarray) -> None:
        """Fill an array with bytes of an answer, from its byte `start` on."""
        at, view = answer * self.places.size + start, memoryview(into).cast("B")
        while view:
            read = os.preadv(self._file.fileno(), [view], at)
            if not read:
                raise EOFError(f"{self._folder}: an answer was cut off")
            at, view = at + read, view[read:]

    def _write(self, buffers: list[memoryview]) -> None:
        at = self._answers * self.places.size
        while buffers:
            written = os.pwritev(self._file.fileno(), buffers[:_MOST_BUFFERS], at)
            at += written
            # the system may take less than it was given
            whole = 0
            while whole < len(buffers) and len(buffers[whole]) <= written:
                written -= len(buffers[whole])
                whole += 1
            buffers = buffers[whole:]
            if written:
                buffers[0] = buffers[0][written:]

    def _full(self, error: OSError) -> UserError:
        return UserError(
            f"{self._folder}: an answer could not be written: {error.strerror or error}",
            "free disk space, then start again with --resume",
        )


class Spooled(Mapping):
    """One answer: the tensors by name, each read when it is asked for, as a copy of its own."""

    def __init__(self, spool: Spool, answer: int):
        self._spool, self._answer = spool, answer

    def __getitem__(self, name: str) -> Tensor:
        import torch

        dtype, shape, start, _ = self._spool.places.of[name]
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.numel():
            self._spool.read(self._answer, start, tensor.reshape(-1).view(torch.uint8).numpy())
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._spool.places.of)

    def __len__(self) -> int:
        return len(self._spool.places.of)

    def numbers(self, names: Sequence[str], start: int, stop: int) -> np.ndarray:
        """Some of the numbers of tensors that follow each other in `Places.order`, counted from the first one's first.

        Returns:
            Flat, `stop - start` of them.
        """
        import torch

        dtype, _, begin, _ = self._spool.places.of[names[0]]
        numbers = torch.empty(stop - start, dtype=dtype).numpy()
        self._spool.read(self._answer, begin + start * dtype.itemsize, numbers)
        return numbers


class Places:
    """Where the tensors of a model lie when they are written one after the other."""

    def __init__(self, model: Mapping[str, Tensor]):
        self.order = sorted(model, key=lambda name: (-model[name].element_size(), str(model[name].dtype), name))
        """Names by type and name; larger numbers first, so that each is where the processor can read it."""
        self.of: dict[str, tuple[torch.dtype, tuple[int, ...], int, int]] = {}
        """Type, shape, first byte and the byte after the last."""
        self.size = 0
        """Bytes of all."""
        for name in self.order:
            start, self.size = self.size, self.size + model[name].numel() * model[name].element_size()
            self.of[name] = (model[name].dtype, tuple(model[name].shape), start, self.size)


def _bytes_of(tensor: Tensor) -> memoryview:
    import torch

    flat = tensor.contiguous()
    return memoryview((flat if flat.dtype != torch.bfloat16 else flat.view(torch.uint8)).numpy()).cast("B")
