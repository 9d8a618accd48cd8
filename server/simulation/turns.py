"""Which of the sites that wait for a worker is next: the one that takes longest, so that none is left over at the end.

That is the longest-processing-time rule (Graham, 1969). How long a site takes is how long it took the last time; before
there was one, sites with more to read go first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from flwr.app import Message


class Turns:
    """The messages that wait.

    Args:
        sizes: by node: how much there is to read, in any unit.
    """

    def __init__(self, sizes: Mapping[int, int]):
        self._sizes = sizes
        self._waiting: list[Message] = []
        self._since: dict[str, float] = {}
        self._took: dict[tuple[str, int], float] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, message: Message) -> None:
        """A site has a message to answer."""
        self._waiting.append(message)

    def next(self) -> Message:
        """Take out the message whose answer takes longest; of equals the one that has waited longest."""
        message = max(self._waiting, key=self._expected)
        self._waiting.remove(message)
        self._since[message.metadata.message_id] = time.monotonic()
        return message

    def done(self, message: Message) -> None:
        """A message has been answered."""
        self._took[_kind(message)] = time.monotonic() - self._since.pop(message.metadata.message_id)

    def _expected(self, message: Message) -> tuple[float, int]:
        return self._took.get(_kind(message), math.inf), self._sizes.get(message.metadata.dst_node_id, 0)


def _kind(message: Message) -> tuple[str, int]:
    return message.metadata.message_type, message.metadata.dst_node_id
