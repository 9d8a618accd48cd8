"""What hospitals see in the faults of `benchmarks/faults.py` where nginx is there and the SuperLink is not."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def gateway(port: int, certificate: Path, key: Path) -> Iterator[None]:
    """What nginx is to hospitals while the SuperLink behind it is away: TLS with the certificate that there is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", port), _Away)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # a hospital that does not trust the certificate hangs up
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Away(BaseHTTPRequestHandler):
    timeout = 10

    def do_POST(self) -> None:
        self.send_error(502)

    def log_message(self, *_: object) -> None:
        """Says nothing."""
