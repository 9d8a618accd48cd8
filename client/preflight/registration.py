"""Whether the coordinator knows this site's key, asked without becoming a node.

A SuperNode makes itself known with a signed activate-node request. The same request with a heartbeat interval of zero
is refused in any case: Flower looks the key up first and the interval next, so that the code of the refusal tells
whether the key is known, and nothing is changed. A test with a real SuperLink holds that order.
"""

from __future__ import annotations

import http.client
import json
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime

from feddusss import flower
from feddusss.release import HEADER
from sites.check import Finding
from sites.config import SuperLinkConfig

PATH = "/v1/fleet/activate-node"
_KNOWN, _UNKNOWN = 2003, 2004
"""Flower's codes for an interval that is not allowed, and for a key that belongs to no node."""
_UNCHECKED = Finding(
    "warning", "registration", "not asked: there is no usable private key", "mend 'key' above, then check again"
)


@dataclass(frozen=True)
class Answer:
    """What the coordinator said."""

    date: str | None
    """Its Date header."""
    came: datetime
    """When the answer came, by this machine's clock."""
    release: str | None
    """What it says of its software."""
    finding: Finding


def ask(connection: http.client.HTTPConnection, link: SuperLinkConfig) -> Answer:
    """Ask on an open connection. Without a usable key, only for the time.

    Raises:
        OSError, http.client.HTTPException: no answer.
    """
    signed = None if link.insecure else _signed(link)
    if signed is None:
        connection.request("GET", "/v1/fleet/")
        response, came = connection.getresponse(), datetime.now(UTC)
        response.read(_MOST_BYTES)
        finding = (
            Finding("ok", "registration", "none without TLS (superlink.insecure)") if link.insecure else _UNCHECKED
        )
        return Answer(response.getheader("Date"), came, response.getheader(HEADER), finding)
    body, headers = signed
    connection.request("POST", PATH, body, headers)
    response, came = connection.getresponse(), datetime.now(UTC)
    content = response.read(_MOST_BYTES)
    return Answer(response.getheader("Date"), came, response.getheader(HEADER), _read(response, content))


_MOST_BYTES = 65536


def _signed(link: SuperLinkConfig) -> tuple[bytes, dict[str, str]] | None:
    """The request as the SuperNode makes it; None if the key cannot be used."""
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key = load_ssh_private_key(link.private_key.read_bytes(), None)
        public = flower.public_key_to_bytes(key.public_key())
    except Exception:  # whatever is wrong with it is told by the check of the key
        return None
    time = flower.now().isoformat()
    headers = {
        "Content-Type": flower.PROTOBUF_MEDIA_TYPE,
        "Accept": flower.PROTOBUF_MEDIA_TYPE,
        flower.FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public).decode(),
        flower.TIMESTAMP_HEADER: time,
        flower.FLEET_HTTP_SIGNATURE_HEADER: b64encode(flower.sign_message(key, time.encode())).decode(),
        **dict(flower.RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata()),
    }
    return flower.ActivateNodeRequest(public_key=public, heartbeat_interval=0).SerializeToString(), headers


def _read(response: http.client.HTTPResponse, content: bytes) -> Finding:

    status, code = response.status, _code(content)
    if response.getheader(flower.VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY):
        return _error(
            "the coordinator runs another release of Flower", "install the release that the coordinator names"
        )
    if code == _KNOWN:
        return Finding("ok", "registration", "the coordinator knows this site's key")
    if code == _UNKNOWN:
        return _error(
            "the coordinator does not know this site's key, or has revoked it, or has lost its list of keys",
            "send it the public key (the .pub file beside the private one) to be registered; if that was done, ask it",
        )
    if status == 401:
        return _error(
            "the coordinator does not accept this site's signature", "set the clock first; then make sure of the key"
        )
    if status in (502, 503, 504):
        return _error(
            f"the coordinator's gateway answers, but no SuperLink behind it (HTTP {status})",
            "tell the coordinator; the client can be started meanwhile and waits for it",
        )
    return _error(
        f"the address answers as no SuperLink does (HTTP {status})", "check host and port in superlink.address"
    )


def _error(problem: str, remedy: str) -> Finding:
    return Finding("error", "registration", problem, remedy)


def _code(content: bytes) -> int | None:
    try:
        return json.loads(content)["code"]
    except (ValueError, KeyError, TypeError):
        return None
