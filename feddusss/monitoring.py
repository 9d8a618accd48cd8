"""A page for Prometheus on this machine alone."""

from __future__ import annotations

import time
from typing import Any

from dusss_core.errors import UserError

HOST = "127.0.0.1"


def serve(collector: Any, port: int) -> None:
    """Answer http://127.0.0.1:`port`/metrics from `collector` until Ctrl-C.

    Args:
        collector: has `collect()`, as prometheus_client wants it; called at each scrape.
        port: 0: any that is free; it is printed.

    Raises:
        UserError: prometheus-client is not installed; the port is taken, or none.
    """
    server = start(collector, port)
    print(f"http://{HOST}:{server.server_port}/metrics (Ctrl-C ends it)", flush=True)
    try:
        while True:
            time.sleep(3600)
    finally:
        server.shutdown()


def start(collector: Any, port: int) -> Any:
    """As `serve`, in a thread; returns the server."""
    check_port(port)
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise UserError("prometheus-client is not installed", "pip install 'feddusss[metrics]'") from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Undescribed(collector))
    try:
        return start_http_server(port, HOST, registry)[0]
    except OSError as error:
        raise UserError(f"port {port} of this machine: {error.strerror or error}", "choose another --port") from None


def check_port(port: int) -> None:
    """Refuse a --port that is none.

    Raises:
        UserError: with the number.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: not a port", "give a number from 0 (any that is free) to 65535")


class _Undescribed:
    """A collector that is not asked for its names before the first scrape."""

    def __init__(self, collector: Any):
        self.collect = collector.collect
