"""What the faults are made with does what the table says."""

from __future__ import annotations

import socket

import pytest

from benchmarks.fault_lab import Cable


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
