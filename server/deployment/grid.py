"""Answers as the coordinator fetches them: those that are whole, at once, and never longer than a round may last.

Flower's own grid, once an answer has been announced, waits for its objects for up to two hours: a hospital whose line
breaks in mid-upload holds up the answers of all others, and no deadline is looked at meanwhile. Here an answer whose
objects are not all there yet is left for the next look; what came of it already is kept until then. An answer has a
quota here too (`server.deployment.intake`), for a SuperLink that is not ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flwr.serverapp import Grid

from dusss_core.memory import give_back
from feddusss import flower, wire
from server.deployment.intake import quota
from server.rounds.replies import TOO_LARGE, UNREADABLE

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict

_AT_ONCE = 2
"""Objects that are fetched together, as Flower does."""


@dataclass
class _Answer:
    """An answer that was announced."""

    id: str
    names: list[str]
    """Of its objects. The last one is the message itself, which is sent last."""
    contents: dict[str, bytes] = field(default_factory=dict)


class PatientGrid(Grid):
    """Flower's grid of real hospitals, but for how answers are fetched."""

    asks_standing = True
    """They can be asked whether they are busy with another study."""

    def __init__(self, grid: Any):
        self._grid = grid
        self._announced: dict[str, _Answer] = {}
        """By the message that is answered."""
        self._limits: dict[str, int] = {}

    def set_run(self, run: flower.Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> flower.Run:
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[flower.NodeInfo]:
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        limits = [quota(message.metadata.message_type, _size(message.content)) for message in messages]
        ids = list(self._grid.push_messages(messages))
        self._limits |= {name: limit for name, limit in zip(ids, limits, strict=False) if name}
        give_back()  # of the round before, while hospitals work
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers to these messages that are whole by now, each once."""

        wanted = list(message_ids)
        # the SuperLink announces an answer once, and then knows no more of the message that it answers
        if unheard := [name for name in wanted if name not in self._announced]:
            response = flower.runtime_client(self._grid).PullMessages(
                flower.PullAppMessagesRequest(message_ids=unheard)
            )
            for message, tree in zip(response.messages_list, response.message_object_trees, strict=True):
                answer = _Answer(message.metadata.message_id, _names(tree))
                self._announced[message.metadata.reply_to_message_id] = answer
        found = (self._fetched(name) for name in wanted if name in self._announced)
        return [message for message in found if message is not None]

    def forget(self, message_ids: Iterable[str]) -> None:
        """Nobody waits for the answers to these messages any more."""
        for name in message_ids:
            self._announced.pop(name, None)
            self._limits.pop(name, None)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)

    def close(self) -> None:
        self._grid.close()

    def _fetched(self, asked: str) -> Message | None:
        """An announced answer, if all of it is there."""

        answer = self._announced[asked]
        try:
            whole = self._fetch(answer, self._limits.get(asked))
        except _TooLarge as beyond:
            self._done(asked, answer)
            why = f"its answer is larger than the {beyond} bytes that it can take"
            return _error(asked, self.run.run_id, TOO_LARGE, why)
        except flower.ObjectPullError:
            # it had been announced, so that the SuperLink can tell no more of it
            limit = self._limits.get(asked)
            self.forget([asked])
            why = f"its upload stopped in the middle, or it is larger than the {limit} bytes that it can take"
            return _error(asked, self.run.run_id, flower.ErrorCode.MESSAGE_UNAVAILABLE, why)
        if not whole:
            return None
        self._done(asked, answer)
        try:
            message = flower.inflate_object_from_contents(answer.id, answer.contents)
            if message.metadata.reply_to_message_id != asked:
                raise ValueError("it says that it answers another message")
            flower.name_message(message, answer.id)
        except Exception as error:
            # the SuperLink has looked at each object, and not at what they are together: that ends no study either
            return _error(asked, self.run.run_id, UNREADABLE, f"its answer cannot be read ({type(error).__name__})")
        return message

    def _fetch(self, answer: _Answer, limit: int | None) -> bool:
        """Fetch what is there of an answer; whether that is all."""
        last = answer.names[-1]
        if last not in answer.contents and not self._take(answer, last, limit):
            return False  # the rest of it is on its way, and none of it is held meanwhile
        missing = [name for name in answer.names if name not in answer.contents]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return all(pool.map(lambda name: self._take(answer, name, limit), missing))

    def _take(self, answer: _Answer, name: str, limit: int | None) -> bool:
        """Fetch one object; whether it is there."""

        pull = flower.make_pull_object_fn_protobuf(
            flower.runtime_client(self._grid).PullObject, self._grid.node, self.run.run_id
        )
        if limit is not None and sum(map(len, list(answer.contents.values()))) > limit:
            raise _TooLarge(limit)
        try:
            answer.contents[name] = pull(name)
        except flower.ObjectUnavailableError:
            return False
        return True

    def _done(self, asked: str, answer: _Answer) -> None:
        """Let the SuperLink delete an answer."""

        self.forget([asked])
        flower.runtime_client(self._grid).ConfirmMessageReceived(
            flower.ConfirmMessageReceivedRequest(
                node=self._grid.node, run_id=self.run.run_id, message_object_id=answer.id
            )
        )


class _TooLarge(Exception):
    """An answer goes beyond its quota."""


def _names(tree: Any) -> list[str]:

    return list(dict.fromkeys(node.object_id for node in flower.iterate_object_tree(tree)))


def _size(content: RecordDict) -> int:
    return sum(wire.size(record) for record in wire.array_records(content).values())


def _error(asked: str, run_id: int, code: int, reason: str) -> Message:
    from flwr.app import Error, Message

    metadata = flower.Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=1,
        dst_node_id=1,
        reply_to_message_id=asked,
        group_id="",
        created_at=0.0,
        ttl=1.0,
        message_type="system",
    )
    return Message(Error(code, reason), metadata=metadata)
