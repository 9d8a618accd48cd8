"""python -m client: one per site, started again after a crash, ended without an orphan, plain about what is wrong."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from client import __main__ as command
from client.node import connection
from client.node.console import Console
from client.node.ending import Situation, why
from client.node.supervisor import Supervisor
from client.secure.keys import make_key
from sites.config import load_site
from tests.deployment import ROOT, Client, SuperLink, environment, wait_until, write_data


def ending(*lines, was_connected=False, may_be_online=False):
    return why(Situation(lines, was_connected, may_be_online, "/site/site.key.pub"))


FAILED = "Failed to initialize the connection to the SuperLink."


@pytest.mark.parametrize(
    ("lines", "known", "name", "words"),
    [
        ([FAILED, "[code: 2004] could not"], {"may_be_online": True}, "still online", "up to a minute"),
        ([FAILED, "[code: 2004] could not"], {}, "key", "/site/site.key.pub"),
        (["SuperNode terminated gracefully."], {}, "clock", "clock"),
        (["SuperNode terminated gracefully."], {"was_connected": True}, "revoked", "revoked"),
        ([FAILED, "certificate verify failed: certificate has expired"], {}, "tls", "expired"),
        ([FAILED, "certificate verify failed: certificate is not yet valid"], {}, "tls", "clock"),
        ([FAILED, "certificate verify failed: IP address mismatch"], {}, "tls", "superlink.address"),
        ([FAILED, "certificate verify failed: unable to get local issuer"], {}, "tls", "root_certificates"),
        ([FAILED, "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred"], {}, "cut short", "until it answers"),
        ([FAILED, "Runtime version compatibility check failed."], {}, "version", "another release of Flower"),
        ([FAILED, "Server error '500'"], {}, "other", "Server error '500'"),
        ([], {}, "other", "log"),
    ],
)
def test_each_ending_says_what_to_do(lines, known, name, words):
    told = ending(*lines, **known)
    assert told.name == name
    assert words in told.text


UNKNOWN_OR_ONLINE = [FAILED, "[code: 2004] could not"]
STILL_ONLINE, UNKNOWN_KEY = "still counts this site as connected", "does not know this site's key"


class Heard:
    """A console whose lines are kept."""

    def __init__(self):
        self.said, self.steps = [], []

    def keep(self, text):
        pass

    def show_step(self, step, steps):
        self.steps.append((step, steps))

    def say(self, text):
        self.said.append(text)

    def show(self, text):
        pass


@pytest.fixture
def watched(tmp_path):
    """A supervisor with a key, that starts nothing, and what `ends(lines)` makes it say."""
    (tmp_path / "site.yaml").write_text(
        "site: alder\ndata: {manifest: m.csv}\nstate_dir: state\n"
        "superlink: {address: 'example.org:443', root_certificates: ca.crt, private_key: site.key}\n"
    )
    make_key(tmp_path / "site.key", "alder")
    site = load_site(tmp_path / "site.yaml")
    supervisor = Supervisor(site, tmp_path / "site.yaml", Heard())
    supervisor.key, supervisor.home = tmp_path / "site.key", site.state_dir / "flwr"
    supervisor.home.mkdir(parents=True)

    def connects():
        connection.remember(supervisor.home, 7, connection.name_of_key(supervisor.key))
        supervisor._heard(supervisor._supernode, "@connected connected to the coordinator")

    def ends(lines):
        before = len(supervisor._console.said)
        supervisor._supernode.lines.clear()
        supervisor._supernode.lines.extend(lines)
        supervisor._ended(supervisor._supernode)
        return "\n".join(supervisor._console.said[before:])

    supervisor.connects, supervisor.ends = connects, ends
    return supervisor


@pytest.mark.parametrize("put_back", [False, True])
def test_a_client_whose_state_is_moved_away_says_so_and_ends(site_file, monkeypatch, capsys, put_back):
    """Without the folder it would wait for its own processes for ever, and a second client could begin."""
    state = site_file.parent / "state"
    site_file.write_text(site_file.read_text() + "superlink: {address: '127.0.0.1:1', insecure: true}\n")

    def moved(self):
        self._check()
        state.rename(state.with_name("moved"))
        if put_back:  # from a backup: the same names, other files
            shutil.copytree(state.with_name("moved"), state)
        self._check()

    monkeypatch.setattr(command, "_check_data", lambda *_: None)
    monkeypatch.setattr(Supervisor, "run", moved)
    assert command.main(["--site", str(site_file)]) == 2
    assert "was moved, deleted or put back while the client runs" in capsys.readouterr().err
    assert state.exists() == put_back, "no other log is begun in its place"


def test_the_supervisor_looks_every_few_seconds(watched, monkeypatch):
    monkeypatch.setattr("client.node.supervisor.CHECK_S", 0.01)
    looks = []
    watched._check = lambda: looks.append(1)
    for _ in range(3):
        watched._wait_for_event()
    assert len(looks) == 3


def test_a_crash_a_moment_ago_is_told_as_still_online_also_by_the_next_client(watched):
    watched.connects()
    watched.ends(["the connection broke"])
    assert STILL_ONLINE in watched.ends(UNKNOWN_OR_ONLINE)
    watched._told, watched._connected = "", False  # as a client that has just been started
    assert STILL_ONLINE in watched.ends(UNKNOWN_OR_ONLINE)


def test_steps_of_the_worker_reach_the_terminal_and_a_line_of_another_kind_ends_nothing(watched):
    watched._heard(watched._worker, "@step 1 9")  # the coordinator has not let the site in yet
    watched.connects()
    for line in ("@status training segment round 3", "@step 4 9", "@step many 9"):
        watched._heard(watched._worker, line)
    assert watched._console.steps == [(4, 9)]


def test_a_person_sees_a_bar_the_step_and_the_time_left_of_the_round(tmp_path, monkeypatch):
    now, drawn = [100.0], []
    monkeypatch.setattr("client.node.console.time.monotonic", lambda: now[0])
    status = SimpleNamespace(update=drawn.append)
    console = Console(logging.getLogger("test"), None, status)
    console.show("training segment round 3")
    console.show_step(1, 21)
    now[0] += 10
    console.show_step(11, 21)
    assert drawn[0] == "training segment round 3" and "left" not in drawn[1]
    assert drawn[2] == f"training segment round 3 {'━' * 10}{'╌' * 10} step 11 of 21, about 10 s left in this round"
    console.show("training segment round 4")
    console.show_step(1, 21)
    assert "left" not in drawn[-1]  # the round before says nothing of this one


def test_a_site_is_not_called_still_online_for_longer_than_it_can_be(watched):
    watched.connects()
    watched.ends(["the connection broke"])
    assert STILL_ONLINE in watched.ends(UNKNOWN_OR_ONLINE)
    long_ago = time.time() - connection.STILL_ONLINE_S - 1
    os.utime(watched.home / "connected", (long_ago, long_ago))
    assert UNKNOWN_KEY in watched.ends(UNKNOWN_OR_ONLINE)


def test_a_connection_that_stands_for_long_counts_from_its_last_sign_of_life(watched):
    watched.connects()
    os.utime(watched.home / "connected", (0, 0))
    connection.alive(watched.home)
    watched.ends(["the connection broke"])
    assert STILL_ONLINE in watched.ends(UNKNOWN_OR_ONLINE)


def test_after_a_revocation_the_key_is_told_as_unknown_and_never_as_still_online(watched):
    watched.connects()
    assert "no longer accepts" in watched.ends(["SuperNode terminated gracefully."])
    assert UNKNOWN_KEY in watched.ends(UNKNOWN_OR_ONLINE)


def test_a_new_key_is_told_as_unknown_though_the_old_one_was_connected_a_moment_ago(watched):
    watched.connects()
    watched.ends(["the connection broke"])
    make_key(watched.key, "alder", force=True)
    assert UNKNOWN_KEY in watched.ends(UNKNOWN_OR_ONLINE)


def test_help_is_instant_and_imports_nothing_heavy():
    code = "import sys, client.__main__; print([m for m in ('torch', 'flwr', 'monai', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.strip() == "[]"


def refused(client: Client, *arguments: str) -> str:
    """What `python -m client` says when it ends with exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "client", "--site", str(client.site_file), *arguments],
        env=environment(client.folder),
        cwd=client.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


class NoLink:
    """Stands for a SuperLink that nobody asks."""

    authenticated = False
    address = "127.0.0.1:1"


@pytest.fixture
def alone(tmp_path):
    write_data(tmp_path, {"alder": 8})
    with Client(tmp_path / "alder", NoLink()) as client:
        yield client


def test_a_site_without_a_key_is_told_how_to_make_one(alone):
    assert "client init" in refused(alone, "--set", "superlink.insecure=false", "--set", "superlink.private_key=k")
    assert "private_key" in refused(alone, "--set", "superlink.insecure=false")


def test_an_unknown_setting_is_named(alone):
    assert "did you mean 'device'" in refused(alone, "--set", "devise=cpu")


@pytest.mark.slow
def test_a_site_with_a_broken_picture_does_not_start(alone):
    picture = next(alone.folder.rglob("*.png"))
    picture.write_bytes(picture.read_bytes()[:20])
    assert "not fit to train on [FD201]\n  -> mend what is told above" in refused(alone)


@pytest.mark.slow
def test_the_second_client_of_a_site_is_refused_and_ctrl_c_leaves_no_orphan(alone):
    alone.start()
    alone.wait_for("the coordinator does not answer")
    assert set(alone.children()) == {"client", "client.node.supernode", "client.node.worker"}
    assert "running for this site already" in refused(alone)
    assert alone.stop(signal.SIGINT) == 0
    assert alone.children() == {}
    assert "stopped" in alone.output


@pytest.mark.slow
def test_a_supervisor_that_is_killed_takes_its_processes_with_it(alone):
    alone.start()
    alone.wait_for("the coordinator does not answer")
    alone.stop(signal.SIGKILL)
    wait_until(lambda: alone.children() == {}, 20, "processes outlive the supervisor")


@pytest.mark.slow
def test_a_worker_that_ends_is_started_again(alone):
    alone.start()
    alone.wait_for("the coordinator does not answer")
    worker = alone.children()["client.node.worker"]
    os.kill(worker, signal.SIGKILL)
    alone.wait_for(r"the worker ended \(signal 9\)")
    wait_until(lambda: alone.children().get("client.node.worker", worker) != worker, 20, "no new worker")


@pytest.mark.slow
def test_a_site_is_let_in_once_registered_out_when_revoked_and_back_after_a_crash(tmp_path):
    write_data(tmp_path, {"alder": 8})
    with SuperLink(tmp_path / "coordinator") as link, Client(tmp_path / "alder", link, register=False) as client:
        client.start()
        client.wait_for("does not know this site's key: send it .*site.key.pub")
        assert link.online() == []
        node = link.register("alder", client.folder / "site.key.pub")
        client.wait_for("connected to the coordinator", 60)
        assert link.online() == ["alder"]

        crashed = time.monotonic()
        os.kill(client.children()["client.node.supernode"], signal.SIGKILL)
        client.wait_for("signed off the connection that was lost")
        wait_until(lambda: client.output.count("connected to the coordinator") == 2, 40, "no second connection")
        assert time.monotonic() - crashed < 40  # without signing off, the SuperLink refuses it for a minute

        with link.control() as control:
            control.unregister(node)
        client.wait_for("no longer accepts this site's key")
        revoked = len(client.output)
        wait_until(lambda: "does not know this site's key" in client.output[revoked:], 60, "the unknown key")
        assert "still counts this site as connected" not in client.output[revoked:]
        assert client.stop() == 0
        assert client.children() == {}


@pytest.mark.slow
def test_a_site_that_stops_is_offline_at_once(tmp_path):
    write_data(tmp_path, {"alder": 8})
    with SuperLink(tmp_path / "coordinator") as link, Client(tmp_path / "alder", link) as client:
        client.start()
        client.wait_for("connected to the coordinator")
        assert client.stop(signal.SIGTERM) == 0
        assert link.online() == []
