"""Objects handed to other processes: whole, large ones copied once whoever gets them, and nothing held for ever."""

from __future__ import annotations

import os
import sys
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from feddusss import wire
from server.simulation import parcels
from server.simulation.inprocess import identify

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere everything goes through the pipe")


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def put_down(monkeypatch):
    """Sizes of what was put down."""
    sizes, memory_with = [], parcels._memory_with
    monkeypatch.setattr(parcels, "_memory_with", lambda large: sizes.append(len(large)) or memory_with(large))
    return sizes


def test_a_model_for_many_sites_is_put_down_once(put_down):
    identify(1)
    model = {"w": torch.randn(600_000), "b": torch.zeros(3)}
    arrays, before = wire.pack(model), descriptors()
    sender, (ours, theirs) = parcels.Sender(), Pipe()
    for node in (1, 2, 3):
        sender.send(ours, Message(RecordDict({"arrays": arrays}), node, "train"))
        received = parcels.receive(theirs)
        assert received.metadata.dst_node_id == node
        assert all(torch.equal(tensor, model[name]) for name, tensor in wire.unpack(received.content["arrays"]).items())
    assert put_down == [wire.size(arrays)]
    sender.forget()
    ours.close()
    theirs.close()
    assert descriptors() == before


def test_what_was_sent_long_ago_is_let_go(put_down):
    before = descriptors()
    sender, (ours, theirs) = parcels.Sender(), Pipe()
    for number in range(6):
        large = np.full(2**20, number, dtype=np.uint8).tobytes()
        sender.send(ours, {"large": large, "again": large})
        received = parcels.receive(theirs)
        assert received == {"large": large, "again": large}
    assert len(put_down) == 6
    assert descriptors() <= before + 2 + 2  # the pipe, and the last two
    sender.forget()


def test_what_takes_the_place_of_what_was_sent_is_not_mistaken_for_it():
    """Freed memory is soon used again, and what is sent is known by its place."""
    sender, (ours, theirs) = parcels.Sender(), Pipe()
    for number in range(6):
        sender.send(ours, bytes([number]) * 2**20)
        assert parcels.receive(theirs) == bytes([number]) * 2**20
    sender.forget()


def test_more_large_parts_than_are_kept_arrive_whole():
    sender, (ours, theirs) = parcels.Sender(), Pipe()
    parts = [os.urandom(2**20) for _ in range(5)]
    sender.send(ours, parts)
    assert parcels.receive(theirs) == parts
    sender.forget()


def test_a_sender_that_ends_in_the_middle_is_noticed(monkeypatch):
    ours, theirs = Pipe()
    ours.send(([2**20], b"anything"))
    ours.close()
    with pytest.raises((EOFError, OSError)):
        parcels.receive(theirs)
