"""Messages between processes: what is large in them is put down once in memory that can be handed over, not piped.

A model goes to many sites. Pickled into each worker's pipe and out of it, its bytes would be copied four times for each
of them. Here each process copies them once, and a sender that sends the same bytes again not at all. The memory has no
name: it is gone when the last process lets go of it.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections import OrderedDict
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

_LARGE = 2**20
"""Bytes below which a pipe costs less."""
_KEPT = 2
"""What a message of every site has in common: the model, and the vision-language model."""
_HANDED_OVER = sys.platform == "linux"


class Sender:
    """Sends objects to processes, and holds the last large ones, in case that they are sent again."""

    def __init__(self):
        self._put_down: OrderedDict[int, tuple[bytes, int]] = OrderedDict()
        """By identity: bytes and where they lie, the latest last."""

    def send(self, connection: Connection, item: Any) -> None:
        """Send an object to the process at the other end, which takes it by `receive`.

        Raises:
            OSError: it is gone.
        """
        file = io.BytesIO()
        pickler = _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.dump(item)
        connection.send(([len(large) for large in pickler.large], file.getvalue()))
        for large in pickler.large:
            reduction.send_handle(connection, self._descriptor(large), 0)  # Linux does not ask for the process
        while len(self._put_down) > _KEPT:
            os.close(self._put_down.popitem(last=False)[1][1])

    def forget(self) -> None:
        """Let go of what was sent."""
        while self._put_down:
            os.close(self._put_down.popitem()[1][1])

    def _descriptor(self, large: bytes) -> int:
        known = self._put_down.pop(id(large), None)
        self._put_down[id(large)] = known or (large, _memory_with(large))
        return self._put_down[id(large)][1]


def receive(connection: Connection) -> Any:
    """What the other process has sent.

    Raises:
        EOFError, OSError: it is gone.
    """
    sizes, pickled = connection.recv()
    return _Unpickler(io.BytesIO(pickled), [_taken(connection, size) for size in sizes]).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, **how: Any):
        super().__init__(file, **how)
        self.large: list[bytes] = []

    def persistent_id(self, item: Any) -> int | None:
        if type(item) is not bytes or len(item) < _LARGE or not _HANDED_OVER:
            return None
        self.large.append(item)
        return len(self.large) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, large: list[bytes]):
        super().__init__(file)
        self._large = large

    def persistent_load(self, place: int) -> bytes:
        return self._large[place]


def _memory_with(content: bytes) -> int:
    descriptor, rest = os.memfd_create("parcel"), memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    return descriptor


def _taken(connection: Connection, size: int) -> bytes:
    try:
        descriptor = reduction.recv_handle(connection)
    except RuntimeError as error:  # nothing came: the sender ended
        raise EOFError from error
    try:
        # at a place, since all who have the descriptor share where it stands
        parts, at = [], 0
        while at < size:
            parts.append(os.pread(descriptor, size - at, at))
            at += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(descriptor)
