"""What asked for a yes, and who gave it.

    state_dir/approvals/STUDY/DIGEST.json    a proposal, as `client.consent.proposal` writes it; never changed
    state_dir/approvals/_approved.json       digest -> who approved it and when, and whether it was withdrawn

A proposal is named by its own digest, so that one that was changed is found. `_approved.json` is written by a person's
command alone, never by a message.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.consent.proposal import Difference, NotOne, Proposal, differences, digest_of, read_proposal
from dusss_core.errors import UserError
from dusss_core.files import exclusive, make_private, write_json, write_text

FOLDER = "approvals"
MOST_WAITING = 32
"""Proposals of one study that wait at a time; whoever sends more pushes out the oldest."""
MOST_STUDIES = 64
"""Studies of which proposals are kept, beside those of which one was approved."""
_APPROVED, _LOCK = "_approved.json", "_lock"
"""No study's name begins so: one named like a file here would keep every other from being approved."""


@dataclass(frozen=True)
class Approval:
    """A person's yes."""

    by: str
    at: str
    """UTC, ISO 8601."""
    withdrawn: str | None = None
    """When it was taken back."""


@dataclass(frozen=True)
class Kept:
    """A proposal that is kept here."""

    digest: str
    asked: str
    """When it first asked, UTC, ISO 8601."""
    proposal: Proposal
    settings: dict[str, Any]
    """As they were written, perhaps by an older release."""
    approval: Approval | None

    @property
    def stands(self) -> bool:
        """Whether it is approved, and was not withdrawn."""
        return self.approval is not None and self.approval.withdrawn is None


class Book:
    """The proposals and approvals of one site."""

    def __init__(self, state_dir: Path):
        self.folder = Path(state_dir) / FOLDER

    def covers(self, proposal: Proposal) -> bool:
        """Whether a person has approved it, or one from which it differs in nothing that matters.

        Raises:
            UserError: `_approved.json` is damaged.
        """
        for digest in self._standing():
            path = self.folder / proposal.study / f"{digest}.json"
            if not path.is_file():
                continue  # of another study
            kept = self._read(path, {})
            if kept is None:
                continue
            if all(change.free for change in differences(kept.proposal, proposal, kept.settings)):
                return True
        return False

    def ask(self, proposal: Proposal) -> bool:
        """Keep a proposal, for a person to look at; whether it is a new one.

        Raises:
            UserError: the disk is full, or does not allow writing.
        """
        path = self.folder / proposal.study / f"{proposal.digest}.json"
        if path.is_file():
            return False
        self._make_room(path.parent)
        make_private(self.folder)
        make_private(path.parent)
        write_text(path, proposal.text())
        return True

    def all(self) -> list[Kept]:
        """Every proposal that is kept, oldest first.

        Raises:
            UserError: one was changed since it was kept, or a file is damaged.
        """
        approvals = self._approvals()
        kept = []
        for path in self._by_age():
            one = self._read(path, approvals)
            if one is None and not path.exists():
                continue  # a message has pushed it out meanwhile
            if one is None:
                raise UserError(
                    f"{path}: was changed after it was kept, or is of another release",
                    "find out who was on this machine; then delete the file, and have the coordinator ask again",
                )
            kept.append(one)
        return kept

    def approve(self, kept: Kept, by: str) -> None:
        """Record a yes.

        Raises:
            UserError: the file was changed since it was read; the disk is full.
        """
        path = self.folder / kept.proposal.study / f"{kept.digest}.json"
        if self._read(path, {}) is None:
            raise UserError(f"{path}: was changed since it was shown", "look at it again with: python -m client show")
        self._write(kept.digest, Approval(by, _now()))

    def withdraw(self, kept: Kept) -> None:
        """Take a yes back.

        Raises:
            UserError: the disk is full.
        """
        self._write(kept.digest, Approval(kept.approval.by, kept.approval.at, _now()))

    def _write(self, digest: str, approval: Approval) -> None:
        make_private(self.folder)
        try:
            with exclusive(self.folder / _LOCK, 10.0):
                entries = {name: vars(one) for name, one in self._approvals().items()}
                write_json(self.folder / _APPROVED, {**entries, digest: vars(approval)})
        except BlockingIOError:
            raise UserError(f"{self.folder}: another command works on it", "try again when it has ended") from None
        except OSError as error:
            raise UserError(
                f"{self.folder / _APPROVED}: {error.strerror or error}; nothing was changed",
                "free disk space, or mend the permissions, and give the command again",
            ) from None

    def _standing(self) -> list[str]:
        return [digest for digest, one in self._approvals().items() if one.withdrawn is None]

    def _approvals(self) -> dict[str, Approval]:
        path = self.folder / _APPROVED
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            return {digest: Approval(**entry) for digest, entry in entries.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read: {error}", "put it back from a backup, or delete it") from None

    def _read(self, path: Path, approvals: dict[str, Approval]) -> Kept | None:
        """The proposal of a file; None if it is not the one that the file is named for."""
        try:
            text = path.read_text(encoding="utf-8")
            if digest_of(text) != path.stem:
                return None
            proposal, settings = read_proposal(text)
            asked = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        except (OSError, ValueError, NotOne):
            return None
        if proposal.study != path.parent.name:
            return None
        return Kept(path.stem, asked, proposal, settings, approvals.get(path.stem))

    def _by_age(self) -> list[Path]:
        """The files of all proposals, oldest first."""
        found = []
        for place, _, names in os.walk(self.folder):  # which passes over a folder that is gone meanwhile
            for path in (Path(place) / name for name in names if Path(place) != self.folder):
                with contextlib.suppress(FileNotFoundError):
                    found += [(path.stat().st_mtime, path)] if path.suffix == ".json" else []
        return [path for _, path in sorted(found)]

    def _make_room(self, folder: Path) -> None:
        """Drop the oldest of too many that wait. What was approved once stays."""
        approved = self._approvals()
        waiting = [path for path in self._by_age() if path.stem not in approved]
        ours = [path for path in waiting if path.parent == folder]
        others = {path.parent for path in waiting} - {folder}
        too_many = ours[: max(0, len(ours) + 1 - MOST_WAITING)]
        if not ours and len(others) >= MOST_STUDIES:
            too_many += [path for path in waiting if path.parent == waiting[0].parent]
        for path in too_many:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another proposal of the study is kept
                path.parent.rmdir()


def changes(kept: Kept, book: Book) -> tuple[Kept, list[Difference]] | None:
    """The newest proposal of the study that was approved before, and in what `kept` differs from it; None: there is
    none."""
    before = [one for one in book.all() if one.proposal.study == kept.proposal.study and one.approval is not None]
    before = [one for one in before if one.digest != kept.digest]
    if not before:
        return None
    last = max(before, key=lambda one: one.approval.at)
    return last, differences(last.proposal, kept.proposal, last.settings)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
