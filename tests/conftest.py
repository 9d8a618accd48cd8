"""Tests share the machine with each other: one thread each is faster than threads that wait for one another."""

from __future__ import annotations

import os
import signal
import socket

import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
# A shell's background job ignores Ctrl-C and hands that on to what it starts; tests interrupt their processes.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def no_network(monkeypatch):
    """Every connection that this process tries to make; none is made."""
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried
