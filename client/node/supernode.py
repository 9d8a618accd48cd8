"""flower-supernode with the guard: python -m client.node.supernode SITE_FILE

Started by the supervisor. It runs Flower's own command in this process, because the guard must sit where the bundle
arrives, and because Flower looks for a message every 3 s, which is long for a small model and for the coordinator.

It keeps in state_dir/flwr: `runtime.json` and `secret` (how this site's worker, and no other user of the machine,
reaches the local API) and `connected` (the last connection: `client.node.connection`).
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from client.door.guard import guard_supernode, record_refusal
from client.node import arrivals, connection, ending
from client.node.child import end_with_supervisor, tell
from client.node.turns import Turns, process_for_queries
from dusss_core.errors import UserError
from dusss_core.files import private_folder, write_bytes
from feddusss import flower, uploads
from sites.config import SiteConfig, SuperLinkConfig, load_site

_LOOPBACK = "127.0.0.1"
_GOODBYE_S = 2.0


class Pace:
    """How long to wait for a message or an answer: a tenth of the time waited so far.

    So waiting costs a round at most a tenth of its length, and an idle site still asks only every 3 s. Each look costs
    the SuperLink about 15 ms of processor time.
    """

    shortest_s = 0.3

    def __init__(self) -> None:
        self._since = time.monotonic()

    def happened(self) -> None:
        """Something came; the next is expected soon."""
        self._since = time.monotonic()

    def sleep(self, most_s: float) -> None:
        """Stands in for time.sleep(most_s)."""
        waited = time.monotonic() - self._since
        time.sleep(min(most_s, max(self.shortest_s, waited / 10)))


def main(argv: Sequence[str]) -> None:
    """Run flower-supernode for the site that the file describes."""
    end_with_supervisor()
    site_file = Path(argv[0])
    site = load_site(site_file)
    home, key = site.state_dir / "flwr", connection.name_of_key(site.superlink.private_key)
    pace, polls, told = Pace(), deque[bool](maxlen=2), _ConnectionTold()

    def on_poll(found: bool, node: int) -> None:
        if not polls:
            connection.remember(home, node, key)
            threading.Thread(target=_stay_alive, args=(home, told), daemon=True).start()
            tell("connected", "connected to the coordinator")
        told.answers()
        polls.append(found)
        if found:
            arrivals.announce(home)
        if any(polls):  # a message has just come, or its answer has just gone
            pace.happened()

    guard_supernode(lambda reason, sha256: _refused(site.state_dir, reason, sha256), on_poll)

    # the module's only use of `time` is to sleep between looks
    flower.stand_in("supernode", "time", pace)
    turns = Turns(home, lambda: process_for_queries(site_file))
    flower.stand_in("supernode", "_pull_and_store_message", turns.take)
    flower.stand_in("supernode", "_push_messages", turns.answer)
    flower.stand_in("supernode", "pull_objects", _dropping_stopped(flower.supernode.pull_objects))
    uploads.read_on()
    flower.update_console_handler(colored=False, timestamps=True)
    logging.getLogger("flwr").addHandler(told)
    _say_missed_goodbye(site.superlink, connection.last(home), key)
    try:
        sys.argv = ["flower-supernode", *flower_arguments(site, site_file)]
    except (OSError, UserError) as error:
        sys.exit(f"{ending.UNWRITABLE}: {error}")
    try:
        flower.flower_supernode()
    except Exception:
        traceback.print_exc()
    # It comes here when the connection broke in a way that Flower does not try again, such as a certificate that
    # expired meanwhile. The thread of Flower's local API would keep this process alive, connected to nothing.
    print("the connection broke", file=sys.stderr, flush=True)
    os._exit(1)


def flower_arguments(site: SiteConfig, site_file: Path) -> list[str]:
    """The arguments of flower-supernode. With `--isolation process` it starts no process: the worker asks for work."""
    link, home, port, secret = site.superlink, site.state_dir / "flwr", _free_port(), secrets.token_bytes(32)
    _write_private(home / "secret", secret)
    runtime = {"address": f"{_LOOPBACK}:{port}", "secret": secret.hex()}
    _write_private(home / "runtime.json", json.dumps(runtime).encode())
    arguments = ["--superlink", link.address, "--isolation", "process", "--host", _LOOPBACK, "--port", str(port)]
    arguments += ["--superexec-auth-secret-file", str(home / "secret")]
    arguments += ["--node-config", f'site-config="{site_file}"']
    if link.insecure:
        return [*arguments, "--insecure"]
    if link.root_certificates is not None:
        arguments += ["--root-certificates", str(link.root_certificates)]
    return [*arguments, "--auth-supernode-private-key", str(link.private_key)]


def _dropping_stopped(pull_objects: Callable) -> Callable:
    """Have a message whose study is stopped while it arrives put away like one that cannot be received.

    Flower drops the message and leaves its task, which the worker takes and then waits minutes for the message.
    """

    def pull(*arguments: Any, **named: Any) -> Any:
        try:
            return pull_objects(*arguments, **named)
        except flower.RunNotRunningException:
            raise RuntimeError("its study was stopped") from None

    return pull


class _ConnectionTold(logging.Handler):
    """Tells when the coordinator stops to answer, once, and when it answers again."""

    lost = False

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Connection attempt failed") and not self.lost:
            self.lost = True
            tell("say", "the coordinator does not answer; trying again until it does")
        elif message.startswith("Connection successful"):
            self.answers()

    def answers(self) -> None:
        """The coordinator answered: also to another request than the one that Flower tried again or gave up."""
        if self.lost:
            self.lost = False
            tell("say", "the coordinator answers again")


def _stay_alive(home: Path, told: _ConnectionTold) -> None:
    """Note, while the connection stands, that it does. Flower asks for no message while one is worked on."""
    while True:
        time.sleep(connection.ALIVE_EVERY_S)
        if not told.lost:
            connection.alive(home)


def _refused(state_dir: Path, reason: str, sha256: str) -> None:
    tell("say", f"refused: {reason}")
    record_refusal(state_dir, reason, sha256)


def _say_missed_goodbye(link: SuperLinkConfig, last: connection.Connection | None, key: str) -> None:
    """Sign the site off if its last SuperNode was killed.

    The coordinator would refuse it for up to a minute, and wait so long for an answer that nobody is working on.
    Nobody else is signed off: the number is that of this state folder's own last connection.
    """
    if link.insecure or last is None or last.key != key:
        return
    import httpx
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    with suppress(httpx.HTTPError, OSError, ValueError):  # then it waits out the minute
        private = load_ssh_private_key(link.private_key.read_bytes(), None)
        signed = [
            flower.RuntimeVersionHttpInterceptor("SuperNode"),
            flower.NodeAuthHttpInterceptor(private, private.public_key()),
        ]
        certificates = None if link.root_certificates is None else str(link.root_certificates)
        with flower.FleetHttpClient.from_server_address(link.address, False, certificates, signed) as client:
            client.DeactivateNode(flower.DeactivateNodeRequest(node_id=last.node))
        tell("say", "signed off the connection that was lost")
        time.sleep(_GOODBYE_S)  # for the coordinator to see that the site was away


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return probe.getsockname()[1]


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that is in a folder of this user alone."""
    private_folder(path.parent)
    path.parent.chmod(0o700)
    write_bytes(path, content)
    path.chmod(0o600)


if __name__ == "__main__":
    main(sys.argv[1:])
