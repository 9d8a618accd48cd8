"""Heads of the sites' audit logs, as they came with answers: `audit_heads.jsonl` in the run's folder.

A head is the SHA-256 of a log's last line, and binds all lines before it. Whoever can write to a site's disk can begin
its log anew, but cannot change what is kept here. The newest head goes back to its site with each message, and the site
looks for it in its log (`client.door.audit.check_head`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feddusss import wire

if TYPE_CHECKING:
    from flwr.app import Message

KEY = "audit_head"
_HEAD = re.compile(r"[0-9a-f]{64}")


class Heads:
    """What was told of each site's log.

    Args:
        path: where it is kept; None: in memory alone.
    """

    def __init__(self, path: Path | None = None):
        self._path = path
        self._newest = {}
        if path is not None and path.is_file():
            self._newest = _read(path)
            _end_line(path)

    def seen(self, site: str) -> dict[str, str]:
        """For a message to a site: the newest head that it has told of."""
        return {KEY: self._newest[site]} if site in self._newest else {}

    def note(self, site: str, message: Message | None, about: Mapping[str, Any]) -> None:
        """Keep the head that came with an answer, or with a refusal; sites with differential privacy send none."""
        if message is None or message.has_error():
            return
        head = (wire.config_records(message.content).get("config") or {}).get(KEY)
        if not isinstance(head, str) or not _HEAD.fullmatch(head):
            return
        self._newest[site] = head
        if self._path is not None:
            line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "site": site, **about, "head": head}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _end_line(path: Path) -> None:
    """Let a line that a crash has cut stand by itself, so that the next one does not join it."""
    with path.open("rb+") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _read(path: Path) -> dict[str, str]:
    """The newest head of each site; a line that a crash has cut, or that is damaged, is passed over."""
    newest = {}
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
            site, head = str(line["site"]), str(line["head"])
        except (ValueError, KeyError, TypeError):
            continue
        if _HEAD.fullmatch(head):
            newest[site] = head
    return newest
