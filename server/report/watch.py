"""python -m server watch RUN: a page on this machine alone that follows a run. It reads, and changes nothing.

It answers on 127.0.0.1, to GET and HEAD, and only where the browser was asked for that address: a page from elsewhere
whose name is made to lead here (DNS rebinding) names itself in `Host`, and gets nothing. The page asks nobody else.
"""

from __future__ import annotations

import json
import sys
import threading
import webbrowser
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from markupsafe import Markup

from dusss_core.errors import UserError
from feddusss.monitoring import HOST, check_port
from feddusss.page import template
from server.report.live import Live

_TEMPLATES = Path(__file__).parent / "templates"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def watch(folder: Path, port: int = 0, *, open_browser: bool = False) -> None:
    """Serve the page of the run in `folder` until Ctrl-C.

    Args:
        port: 0: any that is free; the address is printed.
        open_browser: also open it.

    Raises:
        UserError: not a folder of a run; the port is taken.
    """
    with start(folder, port) as server:
        address = f"http://{HOST}:{server.server_port}/"
        print(f"{address} (on this machine alone; Ctrl-C ends it)", flush=True)
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        server.serve_forever(poll_interval=0.2)


def start(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server that answers once its `serve_forever` is called.

    Raises:
        UserError: as `watch`.
    """
    check_port(port)
    live = Live(folder)
    try:
        return _Server(live, port)
    except OSError as error:
        raise UserError(
            f"port {port} of this machine: {error.strerror or error}", "choose another --port, or leave it out"
        ) from None


class _Server(ThreadingHTTPServer):
    """Answers of one run, each connection in a thread of its own."""

    def __init__(self, live: Live, port: int):
        super().__init__((HOST, port), _Handler)
        self.folder = live.folder
        self._live, self._lock = live, threading.Lock()

    def state(self) -> dict[str, Any]:
        """Where the run is; see `Live.now`."""
        with self._lock:
            return self._live.now()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # a browser that leaves in the middle of an answer: each closed page would be a traceback
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection's questions."""

    server: _Server
    server_version, sys_version = "feddusss", ""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self._send(405, "text/plain", "this page can only be read\n", {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: two lines a second would hide what matters."""

    def _answer(self) -> None:
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self._send(403, "text/plain", f"this page answers to http://{HOST}:{port}/ alone\n")
            return
        url = urlsplit(self.path)
        if url.path == "/":
            told = self.server.state()
            page = template(_TEMPLATES, "watch.html.j2").render(
                name=self.server.folder.name, version=told["version"], page=Markup(told["page"])
            )
            self._send(200, "text/html", page, {"Content-Security-Policy": _POLICY})
        elif url.path == "/state":
            told = self.server.state()
            if parse_qs(url.query).get("seen") == [told["version"]]:
                told["page"] = ""  # it has it
            self._send(200, "application/json", json.dumps(told))
        elif url.path == "/watch.js":
            self._send(200, "text/javascript", (_TEMPLATES / "watch.js").read_text(encoding="utf-8"))
        elif url.path == "/report.html":
            self._send_report()
        else:
            self._send(404, "text/plain", "no such page\n")

    def _send_report(self) -> None:
        try:
            report = (self.server.folder / "report.html").read_text(encoding="utf-8")
        except OSError:
            self._send(404, "text/plain", "there is no report yet: python -m server report RUN\n")
            return
        self._send(200, "text/html", report, {"Content-Security-Policy": _REPORT_POLICY})

    def _send(self, code: int, kind: str, text: str, more: Mapping[str, str] = {}) -> None:
        content = text.encode()
        self.send_response(code)
        headers = {**_HEADERS, "Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content)), **more}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
