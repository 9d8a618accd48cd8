"""The way to the coordinator: certificates, name, connection, TLS, clock, and whether it knows this site's key.

One connection, as the SuperNode makes it: through the proxy that the environment names, verified against the site's
root_certificates. On it one request is made, which changes nothing at the coordinator (`registration` says how).
"""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from client.preflight.registration import Answer, ask
from client.preflight.release import compared
from client.preflight.trust import explain
from dusss_core.errors import UserError
from sites.check import Finding
from sites.config import SiteConfig, SuperLinkConfig

if TYPE_CHECKING:
    from cryptography import x509

TIMEOUT_S = 5.0
SOON = timedelta(days=30)
MOST_AHEAD_S, MOST_BEHIND_S = 5, 300
"""The coordinator refuses a signature that is younger or older than this by its own clock."""
_SLACK_S = 2
"""The Date of an answer has no fractions of a second, and travels a while."""


def root_certificates(site: SiteConfig) -> Iterator[Finding]:
    """The authority's certificates are there and valid today."""
    link = site.superlink
    if link is None or link.insecure:
        return
    if link.root_certificates is None:
        yield Finding(
            "warning",
            "certificates",
            "superlink.root_certificates is not set: every public authority is trusted",
            "name ca.crt of the kit that the coordinator sent",
        )
        return
    certificates = _load(link.root_certificates)
    last = min(certificates, key=lambda certificate: certificate.not_valid_after_utc)
    first = max(certificates, key=lambda certificate: certificate.not_valid_before_utc)
    if first.not_valid_before_utc > _now():
        yield Finding(
            "error",
            "certificates",
            f"{link.root_certificates}: not valid before {first.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; this "
            f"machine's clock says {_now():%Y-%m-%d %H:%M}",
            "set the clock, or ask the coordinator for a valid certificate",
        )
    else:
        yield _until(
            "certificates",
            f"{link.root_certificates}: the authority's certificate",
            last.not_valid_after_utc,
            "ask the coordinator for a new ca.crt",
        )


def coordinator(site: SiteConfig) -> Iterator[Finding]:
    """Name, connection and TLS; then the clock and the registration, on the same connection."""
    link = site.superlink
    if link is None:
        yield Finding(
            "error",
            "coordinator",
            "the site file has no 'superlink'",
            "name the coordinator there: address, root_certificates, private_key",
        )
        return
    try:
        connection = connect(link, _context(link))
    except (OSError, http.client.HTTPException) as error:
        yield _no_connection(link, error)
        return
    with closing(connection):
        yield _connected(link, connection)
        try:
            answer = ask(connection, link)
        except (OSError, http.client.HTTPException) as error:
            yield Finding(
                "error",
                "coordinator",
                f"no answer from {link.address} ({type(error).__name__})",
                "ask the coordinator whether its SuperLink is running, then check again",
            )
            return
    yield from _clock(answer)
    yield answer.finding
    if answer.finding.level == "ok":  # otherwise perhaps no SuperLink
        yield compared(answer.release)


def connect(link: SuperLinkConfig, context: ssl.SSLContext | None) -> http.client.HTTPConnection:
    """An open connection to the coordinator; `context` None: not encrypted.

    Raises:
        OSError: no connection, or not the right one.
    """
    host, port = place(link)
    proxy = proxy_for(link)
    kind = {"timeout": TIMEOUT_S} | ({"context": context} if context else {})
    make = http.client.HTTPSConnection if context else http.client.HTTPConnection
    if proxy is None:
        connection = make(host, port, **kind)
    else:
        parts = urlsplit(proxy)
        connection = make(parts.hostname, parts.port or 80, **kind)
        headers = {}
        if parts.username:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Proxy-Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
        connection.set_tunnel(host, port, headers)
    try:
        connection.connect()
    except BaseException:
        connection.close()
        raise
    return connection


def place(link: SuperLinkConfig) -> tuple[str, int]:
    """Host and port of the coordinator."""
    host, _, port = link.address.rpartition(":")
    return host.strip("[]"), int(port)


def proxy_for(link: SuperLinkConfig) -> str | None:
    """The proxy that the environment names for the coordinator, as a URL."""
    host, _ = place(link)
    if link.insecure or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _context(link: SuperLinkConfig) -> ssl.SSLContext | None:
    if link.insecure:
        return None
    if link.root_certificates is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(link.root_certificates)
    except (OSError, ssl.SSLError):
        raise UserError(
            f"not tried: {link.root_certificates} cannot be used", "mend 'certificates' above first"
        ) from None
    return context


def _connected(link: SuperLinkConfig, connection: http.client.HTTPConnection) -> Finding:
    proxy = proxy_for(link)
    way = f"{link.address}" + (f" through the proxy {_without_password(proxy)}" if proxy else "")
    if link.insecure:
        return Finding("warning", "coordinator", f"{way} answers; nothing is encrypted (superlink.insecure)")
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(connection.sock.getpeercert()["notAfter"]), UTC)
    return _until("coordinator", f"{way}, TLS verified; its certificate", ends, "tell the coordinator")


def _no_connection(link: SuperLinkConfig, error: Exception) -> Finding:
    """What kept the connection from being made, in words of what to do."""
    host, port = place(link)
    proxy = proxy_for(link)
    where = f"the proxy {_without_password(proxy)}" if proxy else link.address

    def finding(problem: str, remedy: str) -> Finding:
        return Finding("error", "coordinator", problem, remedy)

    if isinstance(error, ssl.SSLCertVerificationError):
        return finding(*explain(link, error, lambda context: connect(link, context)))
    if isinstance(error, ssl.SSLError):
        return finding(
            f"{link.address} does not speak TLS as expected ({error.reason or error})",
            "check host and port in superlink.address; something in between may be intercepting the connection",
        )
    if isinstance(error, socket.gaierror):
        name = urlsplit(proxy).hostname if proxy else host
        return finding(
            f"the name {name} is not known here",
            "check superlink.address (or the proxy's name), and that this machine's name server works",
        )
    if isinstance(error, ConnectionRefusedError):
        return finding(
            f"{where} refuses the connection",
            "check the port, and ask whether the coordinator is running"
            if not proxy
            else "check HTTPS_PROXY, and ask whether the proxy is running",
        )
    if isinstance(error, TimeoutError):
        return finding(
            f"{where} does not answer within {TIMEOUT_S:.0f} s",
            f"ask the hospital's network administrators to allow outbound TCP to {host} port {port}"
            + ("" if proxy else ", or for the HTTPS proxy to be used (set HTTPS_PROXY)"),
        )
    if proxy and "Tunnel connection failed" in str(error):
        return finding(
            f"{where} does not let this machine through: {error}",
            f"ask the hospital's network administrators to allow CONNECT to {host} port {port}, or set NO_PROXY",
        )
    return finding(f"no connection to {where}: {error}", "check the network and superlink.address")


def _clock(answer: Answer) -> Iterator[Finding]:
    try:
        ahead = (answer.came - parsedate_to_datetime(answer.date)).total_seconds()
    except (TypeError, ValueError):
        yield Finding("warning", "clock", "the coordinator did not tell its time", "check this machine's clock")
        return
    text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    if -MOST_BEHIND_S < ahead < MOST_AHEAD_S + _SLACK_S:
        level = "ok" if -MOST_BEHIND_S / 2 < ahead < MOST_AHEAD_S else "warning"
    else:
        level = "error"
    if level == "ok":
        yield Finding("ok", "clock", f"within {max(1, round(abs(ahead)))} s of the coordinator's")
    else:
        yield Finding(
            level,
            "clock",
            f"{text}; it refuses what is signed more than {MOST_AHEAD_S} s ahead or {MOST_BEHIND_S} s behind",
            "set this machine's clock, best by NTP (timedatectl set-ntp true); if it is right, tell the coordinator",
        )


def _load(path: Path) -> list[x509.Certificate]:
    from cryptography import x509

    remedy = "it is ca.crt of the kit that the coordinator sent"
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", remedy) from None
    except OSError as error:
        raise UserError(f"{path}: could not be read: {error.strerror}", "mend its permissions") from None
    except ValueError:
        raise UserError(f"{path}: holds no certificate in PEM", remedy) from None


def _until(subject: str, what: str, ends: datetime, remedy: str) -> Finding:
    left = ends - _now()
    text = f"{what} is valid until {ends:%Y-%m-%d}, {left.days} days"
    if left <= timedelta(0):
        return Finding("error", subject, f"{what} expired on {ends:%Y-%m-%d}", remedy)
    return Finding("warning", subject, text, remedy) if left < SOON else Finding("ok", subject, text)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 80}"


def _now() -> datetime:
    return datetime.now(UTC)
