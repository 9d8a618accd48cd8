"""Many hospitals reach the outside through a proxy only: the connection goes through HTTPS_PROXY, still encrypted."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from pathlib import Path

import pytest

from tests.deployment import LOOPBACK, Client, SuperLink, wait_until, write_data


class _Connect(socketserver.StreamRequestHandler):
    """One CONNECT request, then bytes in both directions."""

    def handle(self) -> None:
        method, target, _ = self.rfile.readline().decode().split()
        while self.rfile.readline().strip():
            pass
        self.server.asked.append(f"{method} {target}")
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as outside:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=self._copy, args=(outside, self.connection), daemon=True)
            back.start()
            self._copy(self.connection, outside)
            back.join(5)

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class Proxy(socketserver.ThreadingTCPServer):
    """A proxy on loopback; `asked` holds what it was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__((LOOPBACK, 0), _Connect)
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}"


@pytest.mark.slow
def test_the_connection_goes_through_the_proxy_and_the_worker_does_not(tmp_path: Path):
    write_data(tmp_path, {"alder": 8})
    with SuperLink(tmp_path / "coordinator") as link, Client(tmp_path / "alder", link) as client, Proxy() as proxy:
        # HTTP_PROXY would catch the worker's requests to the SuperNode on loopback
        client.start(HTTPS_PROXY=proxy.url, HTTP_PROXY=proxy.url, NO_PROXY="", no_proxy="")
        client.wait_for("connected to the coordinator")
        wait_until(lambda: link.online() == ["alder"], 10, "alder")
        assert set(proxy.asked) == {f"CONNECT {link.address}"}
        worker = Path(f"/proc/{client.children()['client.node.worker']}/environ").read_text().split("\0")
        assert {"NO_PROXY=,127.0.0.1", "no_proxy=,127.0.0.1"} <= set(worker)
        proxy.shutdown()
