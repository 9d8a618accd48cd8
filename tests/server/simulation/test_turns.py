"""Sites that wait for a worker: the longest first, so that no worker waits for the last of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from server.simulation import turns
from server.simulation.turns import Turns


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def message(node, kind="train"):
    return SimpleNamespace(
        metadata=SimpleNamespace(dst_node_id=node, message_type=kind, message_id=f"{kind}-{node}-{id(object())}")
    )


def order(waiting, nodes, kind="train"):
    for node in nodes:
        waiting.add(message(node, kind))
    found = []
    while waiting:
        found.append(waiting.next())
    return found


def nodes(messages):
    return [one.metadata.dst_node_id for one in messages]


def test_the_site_that_took_longest_goes_first(clock):
    waiting = Turns({})
    first = order(waiting, [1, 2, 3])
    assert nodes(first) == [1, 2, 3]  # as they came
    for one, seconds in zip(first, (1.0, 3.0, 2.0), strict=True):
        clock.now = seconds
        waiting.done(one)
    assert nodes(order(waiting, [1, 2, 3])) == [2, 3, 1]


def test_who_has_not_been_timed_goes_before_those_who_have_and_the_largest_of_them_first(clock):
    waiting = Turns({1: 10, 2: 30, 3: 20})
    (one,) = order(waiting, [1])
    clock.now = 100.0
    waiting.done(one)
    assert nodes(order(waiting, [1, 2, 3])) == [2, 3, 1]


def test_how_long_a_question_took_says_nothing_about_training(clock):
    waiting = Turns({1: 1, 2: 2})
    asked = order(waiting, [1, 2], "query")
    for one, seconds in zip(reversed(asked), (1.0, 9.0), strict=True):
        clock.now = seconds
        waiting.done(one)
    assert nodes(order(waiting, [1, 2], "train")) == [2, 1]
