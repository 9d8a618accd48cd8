"""The SuperLink as the coordinator starts it."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading

import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.loopback import Loopback, answers, wait_for
from server.deployment.control import Control, ControlFailed, find_connection


@pytest.fixture
def start(tmp_path):
    """Starts a SuperLink; a connection to it, and its database."""
    with Loopback(tmp_path / "processes") as loop:

        def started(*command: str):
            database = loop.coordinator / "superlink.db"
            arguments = ["--insecure", "--host", "127.0.0.1", "--port", str(loop.port), "--database", str(database)]
            loop.start("superlink", [*command, *arguments, "--disable-runtime-dependency-installation"])
            wait_for(lambda: loop.alive("superlink") and answers(loop.port), 60, "the SuperLink")
            started.loop = loop
            return Control(find_connection(loop.coordinator)), database

        yield started


def register_while_locked(control: Control, database, seconds: float) -> int:
    """Register a key while something else holds the database for so long."""
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    release = threading.Timer(seconds, lambda: connection.execute("ROLLBACK"))
    release.start()
    try:
        return control.register("alder", key.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    finally:
        release.join()
        connection.close()


@pytest.mark.slow
def test_a_busy_database_is_waited_for(start):
    control, database = start("python", "-m", "server.deployment.superlink")
    with control:
        assert register_while_locked(control, database, 8)


@pytest.mark.slow
def test_flowers_own_command_gives_up(start):
    """If this fails, Flower has mended it, and `server.deployment.superlink` can go."""
    control, database = start("flower-superlink")
    with control, pytest.raises(ControlFailed, match="500"):
        register_while_locked(control, database, 8)


@pytest.mark.slow
def test_it_does_not_go_on_without_what_starts_studies(start):
    control, _ = start("python", "-m", "server.deployment.superlink")
    with control:
        assert control.nodes() == []
    (child,) = wait_for(lambda: start.loop.pids("flower-superexec"), 20, "flower-superexec")
    os.kill(child, signal.SIGKILL)
    assert start.loop.processes["superlink"].wait(30) != 0
    assert "ending too" in start.loop.log("superlink")
