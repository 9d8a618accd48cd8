"""What the faults are made with does what the table says."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from benchmarks.fault_kinds import FAULTS
from benchmarks.fault_lab import Cable

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def cable(listener):
    cable = Cable(listener.getsockname()[1])
    yield cable
    cable.close()


def says(cable, listener) -> bytes:
    """What arrives of a line at the other end; nothing: it was cut."""
    with socket.create_connection(("127.0.0.1", cable.port), 10) as near:
        near.settimeout(10)
        near.sendall(b"hello")
        far = listener.accept()[0]
        with far:
            far.settimeout(10)
            return far.recv(5)


def test_what_is_sent_arrives(cable, listener):
    assert says(cable, listener) == b"hello"


def test_a_line_that_is_made_while_the_cable_is_cut_does_not_hold(cable, listener, monkeypatch):
    connect = socket.create_connection

    def connect_late(address, *arguments):
        made = connect(address, *arguments)
        if address[1] == listener.getsockname()[1]:
            cable.cut()
        return made

    monkeypatch.setattr(socket, "create_connection", connect_late)
    assert says(cable, listener) == b""


def test_every_fault_is_a_row_of_the_table_of_what_was_tried_and_was_survived():
    """What breaks an upload, lies, floods, spoils statistics, and takes disk or database away among them."""
    table = DOCUMENT.read_text(encoding="utf-8").partition("| Fault | Survived |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| ([^|]+) \| (\w+) \|", table, flags=re.M))
    assert rows == {fault.title: "yes" for fault in FAULTS.values()}
