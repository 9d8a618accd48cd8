"""A coordinator on loopback that speaks TLS: certificates of any kind, and answers as a SuperLink gives them."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from socketserver import BaseServer
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from feddusss.release import HEADER, release

Server = TypeVar("Server", bound=BaseServer)
KNOWN = (400, b'{"code": 2003, "detail": "Invalid heartbeat interval."}')
UNKNOWN = (412, b'{"code": 2004, "detail": "Failed to activate SuperNode."}')


class Authority:
    """A certificate authority in `folder`."""

    def __init__(self, folder: Path, name: str = "test CA", days: int = 100):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP384R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        certificate = (
            _builder(self._name, self._name, self._key, now - timedelta(days=200), now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA384())
        )
        self.certificate = folder / "ca.crt"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(
        self, names: Sequence[str] = ("localhost", "127.0.0.1"), begins: int = -1, ends: int = 60
    ) -> ssl.SSLContext:
        """A server's context with a certificate for `names`, valid from `begins` to `ends` days from now."""
        certificate, key = self.server_files(names, begins, ends)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context

    def server_files(self, names: Sequence[str], begins: int = -1, ends: int = 60) -> tuple[Path, Path]:
        """The files of such a certificate and its key."""
        key = ec.generate_private_key(ec.SECP384R1())
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = [x509.IPAddress(ip_address(n)) if n[0].isdigit() else x509.DNSName(n) for n in names]
        certificate = (
            _builder(subject, self._name, key, now + timedelta(days=begins), now + timedelta(days=ends))
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(self._key, hashes.SHA384())
        )
        paths = self._folder / "server.crt", self._folder / "server.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths


def _builder(subject, issuer, key, begins, ends) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )


class Coordinator(ThreadingHTTPServer):
    """Answers every POST with `reply`; its clock is `clock_s` seconds ahead."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None):
        super().__init__(("127.0.0.1", 0), _Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.reply: tuple[int, bytes] = KNOWN
        self.clock_s = 0.0
        self.release: str | None = release()
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def port(self) -> int:
        return self.server_address[1]

    def handle_error(self, request, client_address) -> None:
        """A client that does not trust the certificate hangs up: nothing to tell."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.path, dict(self.headers), body))
        self._answer(*self.server.reply)

    def do_GET(self) -> None:
        self._answer(404, b"{}")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if self.server.release is not None:
            self.send_header(HEADER, self.server.release)
        self.end_headers()
        self.wfile.write(content)

    def date_time_string(self, timestamp=None) -> str:
        return format_datetime(datetime.now(UTC) + timedelta(seconds=self.server.clock_s), usegmt=True)

    def log_message(self, *args) -> None:
        pass


@contextmanager
def coordinator(context: ssl.SSLContext | None) -> Iterator[Coordinator]:
    """A running coordinator."""
    with serving(Coordinator(context)) as server:
        yield server


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """A server at work in a thread of its own while the block runs."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
