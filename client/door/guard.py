"""Which app bundle a hospital accepts: the one that its own release builds, which holds no code.

Flower unpacks whatever bundle the coordinator sends and imports from it before all else. So a bundle is judged before
anything unpacks it, where the SuperNode receives it, and again where a message is worked on.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feddusss import __version__, flower
from feddusss.bundle import release_bundle

_HARMLESS = {"pyproject.toml", ".info/CONTENT"}


def refusal(content: bytes, announced: str) -> str | None:
    """Why a bundle is refused; None if it is this release's own.

    Args:
        content: the bundle; nothing of it is unpacked.
        announced: SHA-256 in hex under which it was sent.

    Returns:
        A sentence that speaks of the bundle alone, since it travels to the coordinator.
    """
    found = hashlib.sha256(content).hexdigest()
    if found == announced == release_bundle()[1]:
        return None
    try:
        others = sorted(set(zipfile.ZipFile(io.BytesIO(content)).namelist()) - _HARMLESS)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeError):
        return "this site refuses the app bundle: it is not a bundle"
    if others:
        names = ", ".join(ascii(name)[1:-1][:60] for name in others[:3])
        return f"this site takes no code: the app bundle holds {names}{', ...' * (len(others) > 3)}"
    return f"this site runs release {__version__} alone, and the app bundle {found[:12]} is not that release's"


def guard_supernode(on_refusal: Callable[[str, str], None], on_poll: Callable[[bool, int], None]) -> None:
    """Judge every bundle that this process's SuperNode receives, before it is stored or unpacked.

    A refused bundle's message is answered with an error that gives the reason; nothing of the message is fetched.

    Args:
        on_refusal: told the reason and the bundle's SHA-256.
        on_poll: told, after each look for a message, whether there was one, and this node's number. The first call
            shows that the SuperNode is connected.

    Raises:
        RuntimeError: Flower is not built as expected, and the guard would not hold.
    """
    from flwr.app import Error, Message

    # There is no public place where a bundle passes by.
    if not all(hasattr(flower.supernode, name) for name in ("_pull_and_store_message", "_insert_message")):
        raise RuntimeError("this release of Flower hides where bundles are received; install the pinned one")
    receive_one = flower.supernode._pull_and_store_message

    def guarded(*, receive: Callable, get_fab: Callable, state: Any, object_store: Any, **others: Any) -> int | None:
        received: list[Message] = []

        def noted_receive():
            if (message := receive()) is not None:
                received.append(message[0])
            return message

        def judged_fab(announced: str, run_id: int):
            fab = get_fab(announced, run_id)
            if reason := refusal(fab.content, announced):
                raise _Refused(reason, hashlib.sha256(fab.content).hexdigest())
            return fab

        try:
            run_id = receive_one(
                receive=noted_receive, get_fab=judged_fab, state=state, object_store=object_store, **others
            )
        except _Refused as refused:
            on_refusal(str(refused), refused.sha256)
            answer = Message(Error(flower.ErrorCode.INVALID_FAB, str(refused)), reply_to=received[0])
            flower.supernode._insert_message(answer, state, object_store)
            run_id = received[0].metadata.run_id
        on_poll(run_id is not None, state.get_node_id())
        return run_id

    flower.stand_in("supernode", "_pull_and_store_message", guarded)


class _Refused(Exception):
    def __init__(self, reason: str, sha256: str):
        super().__init__(reason)
        self.sha256 = sha256


def record_refusal(state_dir: Path, reason: str, sha256: str) -> None:
    """Write a refused bundle to the site's audit log."""
    from client.door.audit import record

    record(state_dir, "bundle refused", reason=reason, sha256=sha256)
