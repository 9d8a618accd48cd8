"""The exchange of messages: pushed together, fetched few at a time, and let go before the next is fetched."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.supercore.inflatable import inflatable_object

from feddusss import wire
from server.rounds.exchange import exchange
from server.rounds.replies import read_reply
from server.rounds.spool import Spool
from server.simulation.inprocess import identify

MODEL = {"w": torch.arange(100_000.0)}
NODES = [3, 5, 8, 13, 21]


class Ready:
    """All nodes have answered as soon as they are asked."""

    def __init__(self):
        identify(1)
        self.pushed: list[int] = []
        """Number of messages in each push."""
        self.fetched: list[int] = []
        """Number of answers in each look."""
        self.alive: list[int] = []
        """Earlier answers that are in memory at each look."""
        self._asked: dict[str, Message] = {}
        self._given: list[weakref.ref] = []

    def push_messages(self, messages):
        messages = list(messages)
        self.pushed.append(len(messages))
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{message.metadata.dst_node_id}"
            self._asked[message.metadata.message_id] = message
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids):
        ids = [name for name in message_ids if name in self._asked]
        self.alive.append(sum(given() is not None for given in self._given))
        self.fetched.append(len(ids))
        return [self._answer(self._asked.pop(name)) for name in ids]

    def _answer(self, message):
        content = RecordDict({"arrays": wire.pack(MODEL), "metrics": MetricRecord({"num-examples": 1})})
        self._given.append(weakref.ref(content["arrays"][wire.KEY]))
        return Message(content, reply_to=message)


@pytest.fixture
def no_collection():
    """What is let go is let go at once, and not when Python next looks for cycles."""
    gc.disable()
    yield
    gc.enable()


def ask(grid, tmp_path, **how):
    spool, replies = Spool(tmp_path, MODEL), {}

    def on_reply(node, message):
        replies[node] = read_reply(str(node), message, MODEL, spool=spool)

    messages = {node: Message(RecordDict(), node, "train") for node in NODES}
    assert exchange(grid, messages, 5.0, on_reply, **how) == {}
    assert all(torch.equal(replies[node].tensors["w"], MODEL["w"]) for node in NODES)


def test_no_answer_is_held_while_the_next_is_fetched(tmp_path, no_collection):
    grid = Ready()
    ask(grid, tmp_path, at_once=1)
    assert grid.fetched == [1] * len(NODES)
    assert grid.alive == [0] * len(NODES)


def test_small_answers_are_fetched_together(tmp_path):
    grid = Ready()
    ask(grid, tmp_path, at_once=2)
    assert grid.fetched == [2, 2, 1]


def test_a_model_is_hashed_once_for_all_sites(tmp_path, monkeypatch):
    """As Flower's own grid hashes it, which is what a push costs here."""
    grid = Ready()
    ask(grid, tmp_path)
    assert grid.pushed == [len(NODES)]
    hashed, add_header = [], inflatable_object.add_header_to_object_body
    monkeypatch.setattr(
        "flwr.app.message.arraychunk.add_header_to_object_body",
        lambda object_body, obj: hashed.append(len(object_body)) or add_header(object_body, obj),
    )
    arrays = wire.pack(MODEL)
    messages = [Message(RecordDict({"arrays": arrays}), node, "train") for node in NODES]
    with inflatable_object.no_object_id_recompute():
        for message in messages:
            inflatable_object.get_all_nested_objects(message)
    assert sum(hashed) < 1.5 * wire.size(arrays)


def test_a_node_that_was_unregistered_a_moment_ago_is_silent(tmp_path):
    class Without(Ready):
        def push_messages(self, messages):
            return [None if name == "m8" else name for name in super().push_messages(messages)]

    heard = []
    messages = {node: Message(RecordDict(), node, "train") for node in NODES}
    assert exchange(Without(), messages, 0.3, lambda node, message: heard.append(node)) == {8: ""}
    assert heard == [3, 5, 13, 21]


def test_a_grid_that_works_in_the_push_is_asked_one_by_one(tmp_path):
    class InPush(Ready):
        works_in_push = True

    grid = InPush()
    ask(grid, tmp_path)
    assert grid.pushed == grid.fetched == [1] * len(NODES)
