"""One message to each of many nodes, and their answers as they come.

A site works for one study at a time. While it has the message of another one in its hands, ours waits, and that is no
time of this study's: a real site that is late is asked what it is at (`feddusss.standing`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feddusss import standing
from server.runs.runfolder import log

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

POLL_S = 0.1
_LONGEST_POLL_S = 2.0
"""Each look costs the SuperLink processor time, so a long wait looks less often: after a twentieth of it."""
_LOOKS = 4
"""And after four times as long as a look takes."""
PUSHED_TOGETHER = 32
"""Messages in one push: Flower hashes and uploads what they have in common once for all."""
_LATE_S, _ASK_S = 15.0, 120.0
"""A node that has not answered for so long is asked what it is at, and again after a tenth of the time waited, between
these bounds."""
_PATIENT_S = 20.0
"""How long after a question its answer may come before a deadline is held against the node."""
_FORGOTTEN_S = 600.0
"""After which a question without an answer is asked again."""


def exchange(
    grid: Grid,
    messages: Mapping[int, Message],
    timeout: float,
    on_reply: Callable[[int, Message], None],
    on_start: Callable[[int], None] | None = None,
    at_once: int = PUSHED_TOGETHER,
    busy_s: float = 0.0,
    on_busy: Callable[[int, str], None] | None = None,
) -> dict[int, str]:
    """Push a message to each node and pull the answers as they come. Nothing is kept of an answer: with large models
    only a few fit in memory.

    Whose answer it is, is told by the message that it answers: a dead node's error reply does not name the node. What
    answers an older message is never pulled.

    Args:
        timeout: seconds that a node has, beside those in which it is busy with another study.
        at_once: how many answers are pulled together, at most. Flower fetches all that are ready of those asked for.
        busy_s: how many seconds it may be busy so, at most.
        on_busy: told when a node says that it is busy with a study, and with none ('') any more.

    Returns:
        The nodes that did not answer in time, and why, as far as they have told.
    """
    silent = dict.fromkeys(messages)
    pending: dict[str, int] = {}

    def pull() -> bool:
        before = len(pending)
        for ids in batches(list(pending), at_once):
            for reply in grid.pull_messages(ids):
                node = pending.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    del silent[node]
                    on_reply(node, reply)
                del reply  # or it would be held while the next one is fetched
        return len(pending) < before

    # where sites work during the push, each answers before the next one starts
    together = 1 if getattr(grid, "works_in_push", False) else PUSHED_TOGETHER
    for nodes in batches(list(messages), together):
        if on_start:
            for node in nodes:
                on_start(node)
        for node, message_id in zip(nodes, grid.push_messages([messages[node] for node in nodes]), strict=False):
            if message_id:  # else the node was unregistered a moment ago
                pending[message_id] = node
        pull()
    standings = Standings(grid, messages, busy_s, on_busy)
    since = time.monotonic()
    look = 0.0
    while pending:
        waited = time.monotonic() - since
        if waited >= timeout and all(standings.is_overdue(node, timeout) for node in pending.values()):
            break
        pause(grid, min(_LONGEST_POLL_S, max(POLL_S, waited / 20, _LOOKS * look)))
        began = time.monotonic()
        look = 0.0 if pull() else time.monotonic() - began
        standings.see_to(set(pending.values()))
    forget(grid, [*pending, *standings.open])
    return {node: standings.why(node) for node in silent}


@dataclass
class _Node:
    """What is known of a node that has not answered."""

    seen: float
    """When it was last heard what it is at; at first, when its message was pushed."""
    asked: float
    busy: str = ""
    """The other study that it was at then."""
    spent_s: float = 0.0
    """On other studies until then."""

    def spent(self) -> float:
        return self.spent_s + (time.monotonic() - self.seen if self.busy else 0.0)

    def heard(self, busy: str) -> None:
        now = time.monotonic()
        if busy or self.busy:  # it changed its work somewhere between the two
            self.spent_s += now - self.seen
        self.seen, self.busy = now, busy


class Standings:
    """What nodes are at that have not answered yet. Only real hospitals are asked: a grid says whether it has such.

    Args:
        nodes: to which a message has just been pushed.
        busy_s, on_busy: as `exchange` has them.
    """

    def __init__(self, grid: Grid, nodes: Iterable[int], busy_s: float, on_busy: Callable[[int, str], None] | None):
        self._grid = grid
        self._asks = getattr(grid, "asks_standing", False)
        self._busy_s = busy_s
        self._on_busy = on_busy or (lambda node, study: None)
        self._began = time.monotonic()
        self._nodes = {node: _Node(self._began, self._began) for node in nodes}
        self.open: dict[str, int] = {}
        """Questions without an answer -> the node that was asked."""

    def see_to(self, late: set[int]) -> None:
        """Hear what nodes say, and ask those that are due, of the `late` ones. A round goes on without that."""
        if not self._asks:
            return
        try:
            self._hear(late)
            self._ask(late)
        except Exception as error:
            log.warning("sites could not be asked whether they are busy: %s: %s", type(error).__name__, error)

    def _hear(self, late: set[int]) -> None:
        for message in self._grid.pull_messages(list(self.open)) if self.open else ():
            node = self.open.pop(message.metadata.reply_to_message_id, None)
            busy = None if node is None or message.has_error() else standing.read(message.content)
            if busy is not None and node in late:
                if busy != self._nodes[node].busy:
                    self._on_busy(node, busy)
                self._nodes[node].heard(busy)

    def _ask(self, late: set[int]) -> None:
        now = time.monotonic()
        wait = min(_ASK_S, max(_LATE_S, (now - self._began) / 10))
        due = [node for node in sorted(late) if now - self._nodes[node].asked >= self._patience(node, wait)]
        for node in due:
            self._nodes[node].asked = now
        for some in batches(due, PUSHED_TOGETHER):
            ids = self._grid.push_messages([message_to(_empty(), node, standing.KIND) for node in some])
            for node, message_id in zip(some, ids, strict=False):
                if message_id:
                    before = [name for name, asked in self.open.items() if asked == node]
                    forget(self._grid, before)
                    self.open = {name: asked for name, asked in self.open.items() if name not in before}
                    self.open[message_id] = node

    def is_overdue(self, node: int, timeout: float) -> bool:
        """Whether a node has had its time, and what it said last was not that it is busy with another study."""
        known, now = self._nodes[node], time.monotonic()
        if now - self._began - min(known.spent(), self._busy_s) < timeout:
            return False
        return not (node in self.open.values() and now - known.asked < _PATIENT_S and self._busy_s)

    def why(self, node: int) -> str:
        """Why a node has not answered; empty if it has not said."""
        known = self._nodes[node]
        if known.busy:
            return f"it is busy with {known.busy} (for {known.spent():.0f} s)"
        return f"it was busy with another study for {known.spent_s:.0f} s" if known.spent_s else ""

    def _patience(self, node: int, wait: float) -> float:
        return _FORGOTTEN_S if node in self.open.values() else wait


def batches(items: list, size: int) -> Iterator[list]:
    """The items in lists of `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def forget(grid: Grid, message_ids: Iterable[str]) -> None:
    """Nobody waits for the answers to these messages any more: a grid may hold what has come of them."""
    getattr(grid, "forget", list)(message_ids)


def pause(grid: Grid, seconds: float) -> None:
    """Wait before the next look, less long where a grid can tell that there is something to see."""
    getattr(grid, "pause", time.sleep)(seconds)


def message_to(content: RecordDict, node: int, kind: str) -> Message:
    """A message of a kind that Flower knows: query, train, evaluate, or one of these with a word after a point."""
    from flwr.app import Message

    return Message(content, node, kind)


def _empty() -> RecordDict:
    from flwr.app import RecordDict

    return RecordDict()
