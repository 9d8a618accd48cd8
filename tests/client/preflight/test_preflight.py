"""The preflight names what stands in a site's way, says what to do, and changes nothing."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import client.preflight
from client.consent.book import Book
from client.consent.proposal import Proposal
from client.door.audit import record
from client.preflight import check, find, machine, network
from client.secure.keys import make_key
from feddusss import __version__
from feddusss.release import code_digest
from feddusss.release import release as release_here
from tests.client.conftest import limit
from tests.client.tls import UNKNOWN, Authority, coordinator, serving
from tests.deployment import Client, SuperLink, environment
from tests.server.conftest import make_study


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ca")


@pytest.fixture
def site(site_file, authority, monkeypatch):
    """A site on a roomy machine, whose coordinator is at a closed port until a test gives it another."""
    roomy = shutil.disk_usage(site_file.parent)._replace(free=10**12)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: roomy)
    monkeypatch.setattr(machine, "available_memory_gb", lambda: 64.0)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    make_key(site_file.parent / "site.key", "alder")
    name_coordinator(site_file, 1)
    return site_file


def name_coordinator(site_file, port, host="localhost"):
    link = f"{{address: '{host}:{port}', root_certificates: ../ca/ca.crt, private_key: site.key}}"
    site_file.write_text(f"site: alder\ndata: {{manifest: manifest.csv}}\nstate_dir: state\nsuperlink: {link}\n")


def found(site_file, *overrides):
    """What the preflight says, by subject."""
    findings = list(find(site_file, overrides))
    for finding in findings:
        assert finding.level == "ok" or finding.remedy, finding
        assert "Traceback" not in finding.message and "\n" not in finding.message
    return {finding.subject: finding for finding in findings}


@contextmanager
def reachable(site_file, context, host="localhost"):
    with coordinator(context) as server:
        name_coordinator(site_file, server.port, host)
        yield server


def tree(folder):
    """Everything in a folder: names, modes, times, contents."""
    return {
        str(path): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.is_file() and hashlib.sha256(path.read_bytes()).digest(),
        )
        for path in sorted([folder, *folder.rglob("*")])
    }


@pytest.mark.parametrize("used", [False, True])
def test_a_site_that_is_ready_is_told_so_and_nothing_is_changed(site, authority, capsys, used):
    if used:
        record(site.parent / "state", "client started")
        (site.parent / "state" / "client.lock").touch()
    with reachable(site, authority.server()) as server:
        before = tree(site.parent.parent)
        assert check(site) == 0
        assert tree(site.parent.parent) == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "ready" and all(line.startswith("ok ") for line in lines[:-1])
    subjects = {line[8:22].strip() for line in lines[:-1]}
    assert subjects >= {
        "config", "data", "text encoder", "device", "privacy", "memory", "disk", "key", "certificates", "coordinator",
        "clock", "registration", "release", "versions", "app", "client", "audit log",
    }  # fmt: skip
    assert len(server.requests) == 1


def test_the_app_hash_is_that_of_the_bundle_which_the_guard_accepts(site):
    from feddusss.bundle import release_bundle

    assert hashlib.sha256(release_bundle()[0]).hexdigest() in found(site)["app"].message


# The way to the coordinator.


@pytest.mark.parametrize(
    ("names", "days", "problem", "remedy"),
    [
        (
            ["elsewhere.example.org"],
            (-1, 60),
            "is not for this name; it names elsewhere.example.org",
            "superlink.address",
        ),
        (["localhost"], (-60, -1), "has expired", "renews it"),
        (["localhost"], (1, 60), "is not valid yet", "set the clock if it is wrong"),
    ],
)
def test_a_certificate_that_does_not_hold_is_explained(site, authority, names, days, problem, remedy):
    with reachable(site, authority.server(names, *days)) as server:
        finding = found(site)["coordinator"]
        assert server.requests == []
    assert finding.level == "error" and problem in finding.message and remedy in finding.remedy


def test_a_wrong_address_is_explained_too(site, authority):
    with reachable(site, authority.server(["localhost"]), host="127.0.0.1"):
        assert "it names localhost" in found(site)["coordinator"].message


def test_a_foreign_authority_is_named_and_gets_nothing(site, authority, tmp_path):
    with reachable(site, Authority(tmp_path / "other", "proxy of somebody").server()) as server:
        finding = found(site)["coordinator"]
        assert server.requests == []
    assert "is not signed by" in finding.message and "proxy of somebody" in finding.message
    assert "do not go on" in finding.remedy


def test_a_certificate_that_ends_soon_is_a_warning(site, authority):
    with reachable(site, authority.server(ends=10)):
        finding = found(site)["coordinator"]
    assert finding.level == "warning" and " 9 days" in finding.message


@pytest.mark.parametrize(("days", "level"), [(-1, "error"), (10, "warning"), (100, "ok")])
def test_the_authoritys_own_dates_are_looked_at(site, tmp_path, days, level):
    Authority(tmp_path / "ca", days=days)
    assert found(site)["certificates"].level == level


def test_a_missing_or_empty_authority_is_named(site, tmp_path):
    (tmp_path / "ca" / "ca.crt").write_text("nothing")
    both = found(site)
    assert "holds no certificate" in both["certificates"].message and "not tried" in both["coordinator"].message
    (tmp_path / "ca" / "ca.crt").unlink()
    assert "no such file" in found(site)["certificates"].message


def test_a_closed_port_is_named(site):
    finding = found(site)["coordinator"]
    assert "localhost:1 refuses the connection" in finding.message and "check the port" in finding.remedy


def test_an_unknown_name_is_named(site):
    finding = found(site, "superlink.address=nowhere.invalid:443")["coordinator"]
    assert "nowhere.invalid is not known" in finding.message


def test_a_server_without_tls_is_told(site):
    with reachable(site, None):
        assert "does not speak TLS" in found(site)["coordinator"].message


def test_a_server_that_does_not_answer_costs_seconds(site, monkeypatch):
    monkeypatch.setattr(network, "TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        finding = found(site, f"superlink.address=127.0.0.1:{silent.getsockname()[1]}")["coordinator"]
    assert "does not answer within" in finding.message and "allow outbound TCP" in finding.remedy


@pytest.mark.parametrize(
    ("clock", "level"),
    [(3600, "error"), (-3600, "error"), (-20, "error"), (100, "ok"), (200, "warning"), (0, "ok")],
)
def test_a_clock_that_the_coordinator_would_refuse_is_told(site, authority, clock, level):
    """A signature from the future is refused after seconds, one from the past after minutes."""
    with reachable(site, authority.server()) as server:
        server.clock_s = clock
        finding = found(site)["clock"]
    assert finding.level == level
    if level == "error":
        assert ("behind" if clock > 0 else "ahead of") in finding.message and "NTP" in finding.remedy


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (UNKNOWN, "does not know this site's key"),
        ((401, b'{"detail": "Invalid SuperNode authentication"}'), "does not accept this site's signature"),
        ((502, b"<html>"), "no SuperLink behind it"),
        ((404, b"\xff"), "as no SuperLink does (HTTP 404)"),
    ],
)
def test_what_the_coordinator_answers_is_told_in_words(site, authority, reply, problem):
    with reachable(site, authority.server()) as server:
        server.reply = reply
        finding = found(site)["registration"]
    assert finding.level == "error" and problem in finding.message


class _Proxy(socketserver.ThreadingTCPServer):
    """An HTTPS proxy: CONNECT and nothing else."""

    daemon_threads = True
    refuses = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.asked: list[bytes] = []


class _Tunnel(socketserver.StreamRequestHandler):
    def handle(self):
        head = [self.rfile.readline()]
        while head[-1].strip():
            head.append(self.rfile.readline())
        self.server.asked.append(b"".join(head))
        if self.server.refuses:
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        # whatever name was asked for, the coordinator is behind this proxy
        with socket.create_connection(("127.0.0.1", self.server.behind)) as far:
            threading.Thread(target=self._copy, args=(far, self.connection), daemon=True).start()
            self._copy(self.connection, far)

    @staticmethod
    def _copy(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass


@pytest.fixture
def proxy(monkeypatch):
    with serving(_Proxy()) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{server.server_address[1]}")
        yield server


def test_the_proxy_of_the_environment_is_used(site, authority, proxy):
    with reachable(site, authority.server(["coordinator.example.org"]), host="coordinator.example.org") as server:
        proxy.behind = server.port
        both = found(site)
        assert both["registration"].level == "ok" and len(server.requests) == 1
    assert "through the proxy 127.0.0.1" in both["coordinator"].message and "secret" not in both["coordinator"].message
    assert (
        proxy.asked[0].startswith(b"CONNECT coordinator.example.org:")
        and b"Proxy-Authorization: Basic" in proxy.asked[0]
    )


def test_a_proxy_that_refuses_is_told(site, authority, proxy):
    proxy.refuses = True
    finding = found(site)["coordinator"]
    assert "does not let this machine through" in finding.message and "CONNECT" in finding.remedy
    assert "secret" not in finding.message


# The machine.


def test_a_missing_key_is_told_and_the_rest_still_checked(site, authority):
    (site.parent / "site.key").unlink()
    with reachable(site, authority.server()) as server:
        both = found(site)
        assert server.requests == []
    assert both["key"].level == "error" and "python -m client init" in both["key"].remedy
    assert both["clock"].level == "ok" and both["registration"].level == "warning"


def test_a_key_that_others_can_read_is_told(site):
    (site.parent / "site.key").chmod(0o640)
    assert "chmod 600" in found(site)["key"].remedy


def test_a_key_on_another_curve_is_told(site):
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    (site.parent / "site.key").write_bytes(key)
    assert "not a key on the curve P-384" in found(site)["key"].message


def test_a_full_disk_is_told(site, monkeypatch):
    usage = shutil.disk_usage(site.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**8))
    assert found(site)["disk"].level == "error"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 10**9))
    assert found(site)["disk"].level == "warning"


def test_a_state_dir_that_cannot_be_written_is_told(site, monkeypatch):
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert "may not write" in found(site)["disk"].message


def test_a_state_dir_that_others_can_read_is_told(site):
    (site.parent / "state").mkdir(mode=0o755)
    assert "chmod 700" in found(site)["state_dir"].remedy
    (site.parent / "state").chmod(0o700)
    assert "state_dir" not in found(site)


def test_little_memory_is_told(site, monkeypatch):
    monkeypatch.setattr(machine, "available_memory_gb", lambda: 1.0)
    assert found(site)["memory"].level == "error"
    monkeypatch.setattr(machine, "available_memory_gb", lambda: 3.0)
    assert found(site, "limits.max_memory_gb=4")["memory"].level == "warning"


@pytest.mark.parametrize("has", [True, False])
def test_a_processor_that_multiplies_in_bfloat16_is_told(site, has, monkeypatch):
    monkeypatch.setattr("dusss_core.runtime.has_bfloat16_instructions", lambda: has)
    assert ("bfloat16" in found(site, "device=cpu")["device"].message) == has


def test_a_device_that_is_not_there_is_told(site):
    assert "not available" in found(site, "device=cuda:17")["device"].message


def test_a_text_encoder_that_is_not_there_is_told(site):
    both = found(site, "limits.text_encoders=[/nowhere/bert]")
    assert both["text encoder"].level == "error" and "no such folder" in both["text encoder"].message


def test_a_damaged_picture_or_manifest_is_told(site):
    picture = next(path for path in site.parent.rglob("*.png"))
    for path in site.parent.rglob("*.png"):
        path.write_bytes(picture.read_bytes()[:60])
    assert "row " in found(site)["data"].message
    (site.parent / "manifest.csv").unlink()
    assert "no such file" in found(site)["data"].message


def test_a_client_that_runs_is_told(site):
    (site.parent / "state").mkdir()
    with (site.parent / "state" / "client.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert found(site)["client"].message == "is running for this site"
    assert found(site)["client"].message == "not running"


def test_a_broken_audit_log_is_told(site):
    for number in range(3):
        record(site.parent / "state", "made", number=number)
    log = site.parent / "state" / "audit.jsonl"
    log.write_text(log.read_text().replace('"number":1', '"number":7'))
    assert "line 2 was changed" in found(site)["audit log"].message


def test_another_release_of_flower_is_told(site, monkeypatch):
    assert found(site)["versions"].level == "ok"
    monkeypatch.setattr("feddusss.flower.RANGE", ((1, 98), (1, 99)))
    assert "flwr>=1.98,<1.100" in found(site)["versions"].remedy


# The preflight itself.


@pytest.mark.parametrize(
    ("theirs", "level", "said"),
    [
        (release_here(), "ok", "the same"),
        ("0.1.0 0123456789abcdef", "error", "the coordinator has feddusss 0.1.0"),
        (f"{__version__} 0123456789abcdef", "warning", "other code under the same number"),
        (None, "warning", "an older one"),
        ("\x1b[2J", "warning", "an older one"),
    ],
)
def test_a_coordinator_with_another_release_is_told_before_a_study_is_declined(site, authority, theirs, level, said):
    with reachable(site, authority.server()) as server:
        server.release = theirs
        release_found = found(site)["release"]
    assert (release_found.level, said in release_found.message) == (level, True), release_found


def test_the_digest_of_the_code_follows_its_files(tmp_path):
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "app.py").write_text("x = 1\n")
    first = code_digest(tmp_path)
    (tmp_path / "client" / "notes.txt").write_text("no code")
    assert code_digest(tmp_path) == first
    (tmp_path / "client" / "app.py").write_text("x = 2\n")
    assert code_digest(tmp_path) != first


def test_a_config_that_cannot_be_used_ends_it(site, capsys):
    site.write_text("sight: alder\n")
    assert check(site) == 2
    out = capsys.readouterr().out
    assert "unknown key 'sight'" in out and "did you mean 'site'" in out and out.endswith("can take part\n")


def test_without_a_coordinator_a_site_is_not_ready(site_file):
    assert "no 'superlink'" in found(site_file)["coordinator"].message


def test_a_check_that_fails_is_a_line_and_no_traceback(site, monkeypatch, capsys):
    monkeypatch.setattr(machine, "disk", lambda site: 1 / 0)
    assert check(site) == 2
    out = capsys.readouterr().out
    assert "could not be checked: ZeroDivisionError" in out and "Traceback" not in out


def test_a_check_that_hangs_holds_nobody(site, monkeypatch):
    monkeypatch.setattr(client.preflight, "LONGEST_S", 0.5)
    monkeypatch.setattr(client.preflight, "_Task", _short)
    monkeypatch.setattr(machine, "data", lambda site: time.sleep(60))
    started = time.monotonic()
    assert "could not be told within" in found(site)["data"].message
    assert time.monotonic() - started < 20


_SLOW_DISK = """
import importlib.abc, random, sys, time
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.startswith("flwr"):
            time.sleep(random.random() * 0.02)
sys.meta_path.insert(0, Slow())
from client.preflight import find
for finding in find(sys.argv[1]):
    print(finding.level, finding.subject, finding.message)
"""


@pytest.mark.slow
def test_a_disk_that_is_slow_to_load_flower_is_no_fault_of_the_coordinators(site, authority):
    with reachable(site, authority.server()):
        done = subprocess.run(
            [sys.executable, "-c", _SLOW_DISK, str(site)], capture_output=True, text=True, timeout=300
        )
    assert "ok coordinator" in done.stdout and "ok app" in done.stdout, done.stdout + done.stderr


def _short(subject, check, longest_s=0.5, task=client.preflight._Task):
    return task(subject, check, longest_s)


@pytest.mark.slow
def test_the_command_line_ends_with_2_and_lines(site):
    command = [sys.executable, "-m", "client", "--site", str(site), "--check"]
    started = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(site.parent / "home"), cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 2 and "refuses the connection" in done.stdout and "Traceback" not in done.stderr
    assert time.monotonic() - started < 60
    assert not (site.parent / "state").exists() and not (site.parent / "home").exists()


@pytest.mark.slow
def test_a_real_superlink_tells_whether_it_knows_the_key_and_is_left_as_it_was(site_file, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    ours = (sys.executable, "-m", "server.deployment.superlink")
    superlink = SuperLink(tmp_path / "coordinator", command=ours)
    with superlink as link, Client(site_file.parent, link, register=False) as hospital:
        assert "does not know this site's key" in found(site_file)["registration"].message
        node = link.register("alder", hospital.key.with_name("site.key.pub"))
        both = found(site_file)
        assert both["registration"].level == both["clock"].level == both["release"].level == "ok"
        assert "TLS verified" in both["coordinator"].message
        with link.control() as control:
            assert [(n.name, n.status) for n in control.nodes()] == [("alder", "registered")]
            control.unregister(node)
        assert "has revoked it" in found(site_file)["registration"].message


def test_a_study_that_waits_for_a_yes_is_told(site):
    assert "no person is asked" in found(site)["approvals"].message
    limit(site, approval=True)
    assert found(site)["approvals"].message == "0 approved, none waits"
    study = make_study()
    Book(site.parent / "state").ask(Proposal(study.training(), study.terms({})))
    finding = found(site)["approvals"]
    assert finding.level == "warning" and study.study in finding.message and "client show" in finding.remedy
