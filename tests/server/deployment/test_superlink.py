"""The SuperLink as the coordinator starts it."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec

from server.deployment.control import Connection, Control, ControlFailed
from tests.deployment import LOOPBACK, free_port, processes_with, wait_until
from tests.server.running import Running, answers


@dataclass
class Started:
    """A SuperLink that answers."""

    control: Control
    database: Path
    running: Running
    address: str


@pytest.fixture
def start(tmp_path):
    """Starts a SuperLink with the command that is given."""
    port = free_port()
    address = f"{LOOPBACK}:{port}"
    with Running(tmp_path / "processes", address) as running:

        def started(*command: str) -> Started:
            database = tmp_path / "superlink.db"
            arguments = ["--insecure", "--host", LOOPBACK, "--port", str(port), "--database", str(database)]
            running.start("superlink", [*command, *arguments, "--disable-runtime-dependency-installation"])
            wait_until(lambda: running.alive("superlink") and answers(port), 60, "the SuperLink")
            return Started(Control(Connection(address)), database, running, address)

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
    link = start("python", "-m", "server.deployment.superlink")
    with link.control as control:
        assert register_while_locked(control, link.database, 8)


@pytest.mark.slow
def test_flowers_own_command_gives_up(start):
    """If this fails, Flower has mended it, and half of `server.deployment.superlink` can go."""
    link = start("flower-superlink")
    with link.control as control, pytest.raises(ControlFailed, match="500"):
        register_while_locked(control, link.database, 8)


@pytest.mark.slow
def test_it_does_not_go_on_without_what_starts_studies(start):
    link = start("python", "-m", "server.deployment.superlink")
    child = wait_until(lambda: processes_with(link.address).get("flower-superexec"), 20, "flower-superexec")
    os.kill(child, signal.SIGKILL)
    assert link.running.processes["superlink"].wait(30) != 0
    assert "ending too" in link.running.log("superlink")
