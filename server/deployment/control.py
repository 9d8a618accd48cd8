"""Talks to the SuperLink's Control API, which answers on loopback alone: start, stop and list runs, list nodes.

Where the SuperLink is, stands in COORDINATOR/flwr/config.toml, as Flower's own command line has it:

    [superlink]
    default = "feddusss"
    [superlink.feddusss]
    address = "127.0.0.1:9091"
    root-certificates = "ca.crt"        # relative to the folder of config.toml; or: insecure = true
"""

from __future__ import annotations

import base64
import hashlib
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dusss_core.errors import CERTIFICATE, UserError
from feddusss import flower
from server.deployment.accounts import not_permitted

DEFAULT_COORDINATOR = Path("kits") / "coordinator"


class SuperLinkAway(Exception):
    """The SuperLink does not answer at all."""


class ControlFailed(Exception):
    """The SuperLink answered with an error."""


@dataclass(frozen=True)
class Connection:
    """Where a SuperLink's Control API is."""

    address: str
    root_certificates: Path | None = None
    """None: not encrypted, as is right on loopback only."""


@dataclass(frozen=True)
class FlowerRun:
    """A run as the SuperLink knows it."""

    id: int
    status: str
    """pending, starting, running or finished."""
    outcome: str
    """Of a finished run: completed, failed or stopped."""
    details: str
    out: Path
    """Folder of the run's files on the coordinator's machine."""
    began: str
    """ISO 8601, UTC; empty before it began."""

    @property
    def finished(self) -> bool:
        return self.status == "finished"


@dataclass(frozen=True)
class Node:
    """A registered site's node."""

    id: int
    name: str
    """As registered; empty where nodes need no registration."""
    status: str
    """registered (never seen), online or offline."""
    seen: str
    """When it came or went last, ISO 8601, UTC; empty if never."""
    fingerprint: str
    """Of its public key, as `ssh-keygen -lf` shows it; empty without authentication."""


def find_connection(coordinator: Path) -> Connection:
    """The connection that a coordinator's folder names.

    Raises:
        UserError: no such folder or file, not readable to this account, or nothing usable in it.
    """
    path = Path(coordinator) / "flwr" / "config.toml"
    try:
        links = tomllib.loads(path.read_text(encoding="utf-8"))["superlink"]
        link = links[links["default"]]
        address = str(link["address"])
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file",
            "name the coordinator's folder with --coordinator; python -m server provision makes one",
        ) from None
    except PermissionError:
        raise not_permitted(path) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: names no SuperLink ({type(error).__name__})",
            "it needs [superlink] default = NAME, and [superlink.NAME] address = HOST:PORT",
        ) from None
    if link.get("insecure"):
        return Connection(address)
    if "root-certificates" not in link:
        raise UserError(f"{path}: no 'root-certificates' for {address}", "name the PEM file of the authority there")
    return Connection(address, (path.parent / str(link["root-certificates"])).resolve())


class Control:
    """A connection to the Control API; use it as a context manager.

    Every method raises `SuperLinkAway` or `ControlFailed`.
    """

    def __init__(self, connection: Connection):

        self.address = connection.address
        _not_through_a_proxy(connection.address)
        certificates = connection.root_certificates
        try:
            self._client = flower.ControlHttpClient.from_server_address(
                connection.address,
                certificates is None,
                None if certificates is None else certificates.read_bytes(),
                interceptors=[flower.RuntimeVersionHttpInterceptor(component_name="feddusss")],
            )
        except PermissionError:
            raise not_permitted(certificates or Path()) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{certificates}: not a usable certificate ({error})", "mend flwr/config.toml") from None

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def start(self, settings: Mapping[str, str]) -> int:
        """Submit this release's bundle with these run settings; returns the run's id."""

        from feddusss.bundle import release_bundle

        content, digest = release_bundle()
        with self._answering():
            reply = self._client.StartRun(
                flower.StartRunRequest(
                    fab=flower.fab_to_proto(flower.Fab(digest, content, {})),
                    override_config=flower.user_config_to_proto(dict(settings)),
                )
            )
        if not reply.run_id:
            raise ControlFailed(f"the SuperLink did not start the run: {reply.note or 'no reason given'}")
        return reply.run_id

    def runs(self) -> list[FlowerRun]:
        """All runs that the SuperLink knows, oldest first."""

        with self._answering():
            reply = self._client.ListRuns(flower.ListRunsRequest())
        return sorted((_run(run) for run in reply.run_dict.values()), key=lambda run: run.began or "9")

    def run(self, run_id: int) -> FlowerRun:
        """One run."""

        with self._answering():
            reply = self._client.ListRuns(flower.ListRunsRequest(run_id=run_id))
        return _run(reply.run_dict[run_id])

    def stop(self, run_id: int) -> bool:
        """Have a run stopped; False where it has ended by itself meanwhile."""

        try:
            with self._answering():
                reply = self._client.StopRun(flower.StopRunRequest(run_id=run_id))
        except ControlFailed:
            if self.run(run_id).finished:
                return False
            raise
        if not reply.success:
            raise ControlFailed(f"the SuperLink could not stop run {run_id}")
        return True

    def nodes(self) -> list[Node]:
        """The nodes that may connect, by name; without those that were unregistered."""

        with self._answering():
            reply = self._client.ListNodes(flower.ListNodesRequest())
        nodes = [_node(info) for info in reply.nodes_info if info.status != "unregistered"]
        return sorted(nodes, key=lambda node: (node.name, node.id))

    def register(self, name: str, public_key: bytes) -> int:
        """Let the holder of a key connect; `public_key` is an EC key in PEM. Returns the new node's id."""

        with self._answering():
            reply = self._client.RegisterNode(flower.RegisterNodeRequest(public_key=public_key, name=name))
        if not reply.node_id:
            raise ControlFailed(f"the SuperLink did not register '{name}'")
        return reply.node_id

    def unregister(self, node_id: int) -> None:
        """Let a node connect no more."""

        with self._answering():
            self._client.UnregisterNode(flower.UnregisterNodeRequest(node_id=node_id))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.RequestError as error:
            raise SuperLinkAway(f"the SuperLink at {self.address} does not answer: {error}") from None
        except httpx.HTTPStatusError as error:
            told = flower.FlowerError.from_json(error.response.text)
            reason = (told.public_details or told.message) if told else error.response.text[:200]
            raise ControlFailed(f"the SuperLink answered {error.response.status_code}: {reason}") from None


@contextmanager
def connected(coordinator: Path) -> Iterator[Control]:
    """The Control API of a coordinator's SuperLink, for a command: one that does not answer is the user's to mend.

    Raises:
        UserError: nothing usable in the folder, or the SuperLink does not answer.
    """
    with Control(find_connection(coordinator)) as control:
        try:
            yield control
        except SuperLinkAway as away:
            raise out_of_date(str(away)) or UserError(
                str(away), f"start it: {Path(coordinator) / 'start.sh'}"
            ) from None


def out_of_date(told: str) -> UserError | None:
    """What to do where a call failed, by its words, since the server certificate has expired or is not valid yet.

    A SuperLink that was up before goes on with such a certificate, and everything that connects anew fails.
    """
    if "certificate has expired" in told:
        return UserError(
            told,
            "renew it: python -m server renew-certificate; then start the SuperLink again, and let nginx read it; a "
            "study that ended meanwhile goes on with --resume",
            CERTIFICATE,
        )
    if "certificate is not yet valid" in told:
        return UserError(told, "set this machine's clock, which is behind the certificate's", CERTIFICATE)
    return None


def fingerprint(public_key: bytes) -> str:
    """SHA-256 of a public key as `ssh-keygen -lf` shows it; empty where `public_key` is none."""
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_public_key(public_key)
    except ValueError:
        return ""
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def _run(run: Any) -> FlowerRun:

    settings = flower.user_config_from_proto(run.override_config)
    return FlowerRun(
        id=run.run_id,
        status=run.status.status,
        outcome=run.status.sub_status,
        details=run.status.details,
        out=Path(str(settings.get("out", ""))),
        began=run.pending_at or run.starting_at,
    )


def _node(info: flower.NodeInfo) -> Node:
    seen = max((moment for moment in (info.last_activated_at, info.last_deactivated_at) if moment), default="")
    if info.status == "online" and info.online_until:
        # a heartbeat promises two intervals
        beat = info.online_until - 2 * info.heartbeat_interval
        seen = max(seen, datetime.fromtimestamp(beat).astimezone().isoformat(timespec="seconds"))
    return Node(info.node_id, info.name, info.status, seen, fingerprint(info.public_key))


def _not_through_a_proxy(address: str) -> None:
    """The Control API is on this machine: a proxy that the environment names has no part in it."""
    host = address.rpartition(":")[0].strip("[]")
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [part for part in os.environ.get(name, "").split(",") if part]
        if host not in hosts:
            os.environ[name] = ",".join([*hosts, host])
