"""A real nginx with the provisioned configuration before a real SuperLink, and real SuperNodes that come through it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
import yaml
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from client.secure.keys import make_key, public_path
from server.deployment.control import Control, find_connection
from server.deployment.folder import CoordinatorFolder
from server.deployment.provision import FLEET_CALLS, provision
from server.deployment.registry import load_registry
from tests.deployment import free_port, wait_until
from tests.server import echo_app
from tests.server.running import Running, answers

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light"),
]
# what a distribution's own nginx.conf has around conf.d/*.conf, at its strictest for this test: a folder of its own
MAIN = """\
daemon off;
{user}pid {folder}/nginx.pid;
error_log stderr;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {conf};
}}
"""


@dataclass
class Coordinator:
    """What runs, and how to reach it from outside."""

    running: Running
    folder: CoordinatorFolder
    port: int
    superlink_port: int
    keys: Path
    """One private key for each site."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def outside(self) -> httpx.Client:
        """A caller who trusts the coordinator and has no key."""
        context = ssl.create_default_context(cafile=str(self.folder.authority.certificate))
        return httpx.Client(base_url=self.url, verify=context, trust_env=False)

    def command(self, *arguments: str) -> str:
        process = self.running.start(
            f"server-{arguments[0]}",
            ["python", "-m", "server", *arguments, "--coordinator", str(self.folder.path)],
        )
        assert process.wait(60) == 0, self.running.log(f"server-{arguments[0]}")
        return self.running.log(f"server-{arguments[0]}")

    def arrived(self) -> int:
        """How many requests the SuperLink has seen from nginx."""
        return self.running.log("superlink").count('127.0.0.1:0 - "')

    def online(self) -> set[str]:
        with Control(find_connection(self.folder.path)) as control:
            return {node.name for node in control.nodes() if node.status == "online"}

    def start_site(self, name: str) -> None:
        """A hospital's SuperNode, which knows nothing but what its kit says."""
        command = ["flower-supernode", "--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port())]
        command += ["--root-certificates", str(self.folder.authority.certificate)]
        command += ["--auth-supernode-private-key", str(self.keys / name)]
        self.running.start(name, command, FLWR_HOME=str(self.running.folder / name))

    def echo(self, nodes: int, megabytes: int) -> dict[str, bool]:
        """Run the trivial study; node id -> whether it sent back what it should."""
        from flwr.cli.build import build_fab_from_disk
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        app = self.running.folder / "echo"
        app.mkdir(exist_ok=True)
        (app / "pyproject.toml").write_text(echo_app.PYPROJECT)
        content = build_fab_from_disk(app)
        out = self.running.folder / f"echo-{time.monotonic_ns()}.json"
        settings = {"out": str(out), "nodes": nodes, "megabytes": megabytes}
        with Control(find_connection(self.folder.path)) as control:
            fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
            request = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(settings))
            run_id = control._client.StartRun(request).run_id
            wait_until(lambda: out.exists() or control.run(run_id).finished, 120, "the run to end", every_s=1)
            assert out.exists(), control.run(run_id)
        return json.loads(out.read_text())


def provisioned(tmp_path: Path, port: int, superlink_port: int) -> CoordinatorFolder:
    study = {
        "study": "behind_nginx",
        "deployment": {
            "hosts": ["127.0.0.1"],
            "listen": ["127.0.0.1"],
            "port": port,
            "superlink_port": superlink_port,
            "sites": ["site_a", "site_b", "site_c"],
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    return provision(tmp_path / "study.yaml", tmp_path / "kits", say=lambda _: None)


def start_nginx(running: Running, folder: CoordinatorFolder, port: int) -> None:
    own = running.folder / "nginx"
    own.mkdir(parents=True)
    user = "user root;\n" if own.owner() == "root" else ""
    (own / "nginx.conf").write_text(MAIN.format(folder=own, conf=folder.path / "nginx.conf", user=user))
    running.start("nginx", [NGINX, "-c", str(own / "nginx.conf"), "-e", "stderr"])
    wait_until(lambda: running.alive("nginx") and answers(port), 20, "nginx")


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("nginx")
    port, superlink_port = free_port(), free_port()
    folder = provisioned(tmp_path, port, superlink_port)
    for site in ("site_a", "site_b", "site_c"):
        make_key(tmp_path / "keys" / site, site)
    with Running(tmp_path / "processes", f"127.0.0.1:{superlink_port}") as running:
        found = Coordinator(running, folder, port, superlink_port, tmp_path / "keys")
        # while it is down: start.sh hands it over
        assert "takes effect when" in found.command("register", "site_b", str(public_path(found.keys / "site_b")))
        running.start("superlink", [str(folder.path / "start.sh")])
        wait_until(lambda: running.alive("superlink") and answers(superlink_port), 60, "the SuperLink")
        start_nginx(running, folder, port)
        yield found


def served_by_the_superlink() -> set[str]:
    """Every path that the installed SuperLink answers to."""
    from flwr.superlink.main import create_app

    return {*create_app().openapi()["paths"], "/docs", "/openapi.json", "/"}


def test_the_calls_let_through_are_those_of_a_supernode():
    fleet = {path.removeprefix("/v1/fleet/") for path in served_by_the_superlink() if path.startswith("/v1/fleet/")}
    assert set(FLEET_CALLS) == fleet - {"register-node", "unregister-node"}


def test_nothing_but_fleet_calls_passes(coordinator):
    paths = sorted(served_by_the_superlink() - {f"/v1/fleet/{call}" for call in FLEET_CALLS})
    assert sum(path.startswith("/v1/control/") for path in paths) > 20
    assert sum(path.startswith("/v1/runtime/") for path in paths) > 10
    arrived = coordinator.arrived()
    with coordinator.outside() as caller:
        for path in paths:
            for method in ("POST", "GET"):
                assert caller.request(method, path, content=b"").status_code in (403, 404), path
        for call in FLEET_CALLS:
            assert caller.get(f"/v1/fleet/{call}").status_code == 403
    assert coordinator.arrived() == arrived


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/get-run/../../control/list-runs",
        "/v1/fleet/get-run%2f..%2f..%2fcontrol%2flist-runs",
        "//v1/control/list-runs",
        "/v1/control/list-runs?x=/v1/fleet/get-run",
        "/v1/fleet/get-run;/../../control/list-runs",
        "/V1/control/list-runs",
    ],
)
def test_no_detour_leads_to_control(coordinator, path):
    arrived = coordinator.arrived()
    answer = raw_request(
        coordinator, f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    assert answer.split()[1] in (b"400", b"403", b"404"), answer
    assert coordinator.arrived() == arrived


def test_the_superlink_itself_is_on_loopback_alone(coordinator):
    def listens(address: str) -> bool:
        with socket.socket() as caller:
            caller.settimeout(2)
            return caller.connect_ex((address, coordinator.superlink_port)) == 0

    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    listening = (Path("/proc/net/tcp")).read_text().splitlines()[1:]
    mine = [line.split()[1] for line in listening if line.split()[1].endswith(f":{coordinator.superlink_port:04X}")]
    assert listens("127.0.0.1")
    assert "0100007F:" + f"{coordinator.superlink_port:04X}" in mine
    assert "00000000:" + f"{coordinator.superlink_port:04X}" not in mine
    assert not any(listens(address) for address in others if not address.startswith("127."))


def test_plain_http_is_refused(coordinator):
    with httpx.Client(trust_env=False) as caller:
        answer = caller.post(f"http://127.0.0.1:{coordinator.port}/v1/fleet/activate-node", content=b"")
    assert answer.status_code == 400


def test_old_tls_is_refused(coordinator):
    context = ssl.create_default_context(cafile=str(coordinator.folder.authority.certificate))
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", coordinator.port), 5) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_the_two_calls_of_the_guide_are_answered_as_it_says(coordinator):
    """curl sends neither a body nor its type with `-X POST` alone."""
    guide = (Path(__file__).parents[3] / "docs" / "deploy.md").read_text(encoding="utf-8")
    calls = re.findall(r"-X POST https://HOST:8443(/v1/\S+) +# (\d+)$", guide, re.MULTILINE)
    assert len(calls) == 2
    with coordinator.outside() as caller:
        assert [(path, str(caller.post(path).status_code)) for path, _ in calls] == calls


def test_too_large_a_body_is_refused(coordinator):
    with coordinator.outside() as caller:
        answer = caller.post("/v1/fleet/push-object", content=b"x" * (17 * 2**20))
    assert answer.status_code == 413


def test_a_call_without_a_registered_key_is_refused(coordinator):
    arrived = coordinator.arrived()
    with coordinator.outside() as caller:
        for call in FLEET_CALLS:
            answer = caller.post(f"/v1/fleet/{call}", content=b"", headers={"content-type": PROTOBUF_MEDIA_TYPE})
            assert answer.status_code == 401, call
    # by the SuperLink, not by nginx: they did pass
    assert coordinator.arrived() == arrived + len(FLEET_CALLS)


def test_a_superlink_that_cannot_work_now_is_asked_again(tmp_path):
    """Flower's client ends after 500 and tries again after 503; other refusals must reach it as they are."""
    port, superlink_port = free_port(), free_port()
    folder = provisioned(tmp_path, port, superlink_port)

    class Upstream(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(int(self.headers["x-answer"]))
            self.end_headers()
            self.wfile.write(b'{"code": 2004}')

    upstream = HTTPServer(("127.0.0.1", superlink_port), Upstream)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.server.certificate, folder.server.key)
    upstream.socket = context.wrap_socket(upstream.socket, server_side=True)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    with Running(tmp_path / "processes", f"127.0.0.1:{superlink_port}") as running:
        start_nginx(running, folder, port)
        outside = Coordinator(running, folder, port, superlink_port, tmp_path)
        with outside.outside() as caller:
            for status, passed_on in ((500, 503), (503, 503), (412, 412), (401, 401), (200, 200)):
                answer = caller.post("/v1/fleet/pull-messages", headers={"x-answer": str(status)}, content=b"")
                assert answer.status_code == passed_on
                assert ("2004" in answer.text) == (status != 500)
    upstream.shutdown()
    upstream.server_close()


def raw_request(coordinator: Coordinator, request: str) -> bytes:
    """Send a request as it stands, since clients put paths in order before they send them."""
    context = ssl.create_default_context(cafile=str(coordinator.folder.authority.certificate))
    with (
        socket.create_connection(("127.0.0.1", coordinator.port), 5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(request.encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


@pytest.mark.timeout(900)
def test_sites_work_through_nginx_until_their_key_is_revoked(coordinator):
    running = coordinator.running
    public = str(public_path(coordinator.keys / "site_a"))
    assert "site_a: registered at the SuperLink" in coordinator.command("register", "site_a", public)
    for name in ("site_a", "site_b", "site_c"):
        coordinator.start_site(name)
    wait_until(lambda: coordinator.online() == {"site_a", "site_b"}, 60, "both sites to be online", every_s=1)

    # 12 MiB go in chunks, of which each is smaller than what nginx lets in
    answered = coordinator.echo(nodes=2, megabytes=12)
    names = load_registry(coordinator.folder).names_by_node()
    assert {names[int(node)]: good for node, good in answered.items()} == {"site_a": True, "site_b": True}
    # nobody registered its key
    running.processes["site_c"].wait(60)

    coordinator.command("revoke", "site_a")
    running.processes["site_a"].wait(60)
    coordinator.start_site("site_a")
    running.processes["site_a"].wait(60)
    assert running.alive("site_b")
    assert coordinator.online() == {"site_b"}
    assert [names[int(node)] for node in coordinator.echo(nodes=1, megabytes=1)] == ["site_b"]

    # the same hospital with a new key, while the other goes on
    make_key(coordinator.keys / "site_a", "site_a", force=True)
    coordinator.command("register", "site_a", public)
    coordinator.start_site("site_a")
    wait_until(lambda: coordinator.online() == {"site_a", "site_b"}, 60, "site_a to be back", every_s=1)
    assert running.alive("site_b")
