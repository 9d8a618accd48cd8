"""The sites of a simulation behind a network that loses, delays and changes messages as a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo

from client.app import app
from server.rounds.coordinator import Coordinator
from server.runs.events import Reporter
from server.runs.runfolder import open_run
from server.simulation.inprocess import InProcessGrid
from server.simulation.materialise import materialise
from server.study.config import StudyConfig

Meddle = Callable[[str, str, int, Message], Message | None]
"""(site, kind of message, round, answer) -> the answer that arrives; None: none does. The kind is query, train,
evaluate, or a small step of secure aggregation: keys, deal, vote, reveal."""
UNAVAILABLE = ErrorCode.NODE_UNAVAILABLE


class UnreliableGrid(InProcessGrid):
    """Answers pass through `meddle`; sites in `away` are not connected; `names`: what nodes are registered as."""

    def __init__(self, site_files, meddle: Meddle | None = None):
        super().__init__(app, site_files)
        self.meddle = meddle or (lambda site, kind, round, answer: answer)
        self.away: set[str] = set()
        self.registered: dict[str, str] = {}
        self.sent: list[tuple[str, str, int]] = []
        """(site, kind, round) of every message."""
        self.looks = 0
        self.on_look: Callable[[int], None] = lambda looks: None

    def get_nodes(self) -> Iterable[NodeInfo]:
        self.looks += 1
        self.on_look(self.looks)
        there = [(node, name) for node, name in self._names.items() if name not in self.away]
        return [NodeInfo(node_id=node, name=self.registered.get(name, "")) for node, name in there]

    def get_node_ids(self) -> Iterable[int]:
        return [info.node_id for info in self.get_nodes()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        ids = list(super().push_messages(messages))
        for message, message_id in zip(messages, ids, strict=True):
            site, kind = self._names[message.metadata.dst_node_id], message.metadata.message_type
            if "secure" in message.content and kind != "train":
                kind = str(message.content["secure"]["step"])
            round = int(message.content["config"].get("round", 0))
            self.sent.append((site, kind, round))
            answer = self.meddle(site, kind, round, self._replies.pop(message_id))
            if answer is not None:
                answer.metadata.__dict__["_reply_to_message_id"] = message_id
                self._replies[message_id] = answer
        return ids

    def renumber(self, site: str, node: int) -> None:
        """The site comes back as another node."""
        old = next(known for known, name in self._names.items() if name == site)
        self._names[node], self._contexts[node] = self._names.pop(old), self._contexts.pop(old)


class Listener(Reporter):
    """Remembers what was told."""

    def __init__(self):
        self.messages: list[str] = []
        self.refused: list[tuple[str, str]] = []
        self.outside: list[tuple[str, str]] = []
        self.done: list[str] = []
        self.rounds: list[tuple[str, int, list[str]]] = []

    def on_message(self, text):
        self.messages.append(text)

    def on_site_done(self, site, metrics):
        self.done.append(site)

    def on_site_refused(self, site, reason):
        self.refused.append((site, reason))

    def on_site_outside(self, node, reason):
        self.outside.append((node, reason))

    def on_round_start(self, phase, round, rounds, sites):
        self.rounds.append((phase, round, sites))


def error(answer: Message) -> Message:
    """The SuperLink's answer for a node that is gone."""
    return Message(Error(code=UNAVAILABLE, reason="node unavailable"), metadata=answer.metadata)


def coordinate(study: StudyConfig, out: Path, meddle: Meddle | None = None, prepare=None, wait_s: float = 0.0):
    """Run a study over such a grid. Returns the grid and the listener; `prepare(grid)` comes before."""
    grid = UnreliableGrid(materialise(study, out), meddle)
    if prepare is not None:
        prepare(grid)
    listener = Listener()
    run = open_run(out, study, resume=True)
    Coordinator(grid, study, run, reporter=listener, wait_s=wait_s).run()
    return grid, listener
