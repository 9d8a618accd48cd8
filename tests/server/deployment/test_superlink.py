"""The SuperLink as the coordinator starts it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec
from uvicorn.protocols.http import flow_control

from feddusss import cli, flower, uploads
from server.deployment import superlink
from server.deployment.control import Connection, Control, ControlFailed
from server.deployment.superlink import PAGE_BYTES
from tests.client.tls import Authority
from tests.deployment import LOOPBACK, ROOT, free_port, processes_with, wait_until
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


def test_a_study_that_is_slow_to_start_is_not_started_a_second_time(tmp_path, monkeypatch):
    """A claim holds until the first call, and then for as long after a heartbeat as it always did."""
    core, clock = flower.sql_corestate, [flower.now()]
    for name in ("HEARTBEAT_DEFAULT_INTERVAL", "HEARTBEAT_PATIENCE", "now"):
        monkeypatch.setattr(core, name, getattr(core, name))  # put back afterwards
    running = core.HEARTBEAT_DEFAULT_INTERVAL * core.HEARTBEAT_PATIENCE
    superlink._wait_for_what_starts()
    monkeypatch.setattr(core, "now", lambda: clock[0])
    state = flower.SqlLinkState(str(tmp_path / "superlink.db"), SimpleNamespace(), None)
    state.initialize()
    task = state.create_task("serverapp", 1)
    claim = state.claim_task(task)
    clock[0] += timedelta(seconds=superlink.STARTING_S - 1)
    assert state.get_task_by_token(claim) is not None and state.activate_task(task)
    clock[0] += timedelta(seconds=running - 1)
    assert state.acknowledge_task_heartbeat(task)
    clock[0] += timedelta(seconds=running + 1)
    assert state.get_task_by_token(claim) is None


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


@pytest.mark.slow
def test_its_database_is_made_for_chunks_of_models(start):
    link = start("python", "-m", "server.deployment.superlink")
    with link.control as control:
        control.nodes()
    connection = sqlite3.connect(link.database)
    assert connection.execute("PRAGMA page_size").fetchone() == (PAGE_BYTES,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_chunk_is_read_in_one_go():
    """If this fails, uvicorn has moved its limit, and `feddusss.uploads` must follow."""
    from uvicorn.protocols.http import h11_impl, httptools_impl

    before = [module.HIGH_WATER_LIMIT for module in (h11_impl, httptools_impl)]
    assert before == [65536, 65536]
    with pytest.MonkeyPatch.context() as patch:
        for module in (h11_impl, httptools_impl, flow_control):
            patch.setattr(module, "HIGH_WATER_LIMIT", 65536)
        uploads.read_on()
        assert httptools_impl.HIGH_WATER_LIMIT == h11_impl.HIGH_WATER_LIMIT == uploads.CHUNK_BYTES > 5 * 2**20


def test_a_superlink_whose_certificate_has_expired_says_what_to_do_and_does_not_start(tmp_path):
    authority = Authority(tmp_path)
    expired, _ = authority.server_files(["localhost"], begins=-30, ends=-1)
    command = [sys.executable, "-m", "server.deployment.superlink", "--ssl-certfile", str(expired)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ended.returncode == cli.USER_MUST_MEND
    assert f"{expired}: has expired" in ended.stderr and "python -m server renew-certificate" in ended.stderr
    assert " UTC [FD402]\n  -> " in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("certificate", "problem", "remedy"),
    [
        ("early", "is valid from", "set the clock"),
        ("broken", "not a certificate", "put it back"),
        (None, "no such file", "put it back"),
    ],
)
def test_a_superlink_whose_certificate_cannot_be_used_says_so_in_two_lines(tmp_path, certificate, problem, remedy):
    path = tmp_path / "server.crt"
    if certificate == "early":
        path, _ = Authority(tmp_path).server_files(["localhost"], begins=2, ends=30)
    elif certificate == "broken":
        path.write_text("none")
    command = [sys.executable, "-m", "server.deployment.superlink", "--ssl-certfile", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ended.returncode == cli.USER_MUST_MEND, ended.stderr
    told = ended.stderr.splitlines()
    assert f"{path}: {problem}" in told[0] and told[1].startswith("  -> ") and remedy in told[1] and len(told) == 2
