"""The preflight names what stands between a site and its coordinator."""

from __future__ import annotations

import socket
import socketserver
import subprocess
import sys
import threading

import pytest

from client.preflight import network
from feddusss import __version__
from feddusss.release import release as release_here
from tests.client.preflight.looks import found, reachable
from tests.client.tls import UNKNOWN, Authority, serving
from tests.deployment import Client, SuperLink


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
