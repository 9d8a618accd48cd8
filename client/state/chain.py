"""A file of JSON lines that can only be added to: every line holds the SHA-256 of the line before.

A line that is changed, removed, inserted or moved breaks the chain at its place. The chain alone cannot show that
lines at its end were cut off; a second small file, the head, holds the number of lines and the hash of the last one,
and does: it is made before the first line. What neither can show: somebody who may write in the folder, and rewrites
both files from some line on, or begins them anew. Against that the hash of the last line goes with each answer: the
coordinator keeps it and repeats it, and a log that does not hold it says so (`client.door.audit.check_head`).

Several processes may write: each holds a lock on the file itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dusss_core.errors import UserError
from dusss_core.outside import shown

LOG, HEAD = "audit.jsonl", "audit.head"
BEGINNING = "0" * 64
"""The hash before the first line."""
TORN, DAMAGED = "torn line set aside", "log damaged"
"""Events about the log itself."""


def append(folder: Path, event: str, fields: Mapping[str, Any]) -> str:
    """Append one line to the log in `folder`, and return when it is on the disk.

    What a crash left of a line is moved to a file of its own first, and a log that does not end as its head says is
    noted in it.

    Returns:
        The line's hash: the head, until there is another line.

    Raises:
        OSError: the line is not in the log. The lines before are untouched.
    """
    with _locked(folder / LOG, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as log:
        return _Writer(folder, log).write(event, fields)


@dataclass(frozen=True)
class Verdict:
    """What `verify` found."""

    lines: int
    """Whole lines in the log."""
    last: str
    """Hash of the last line."""
    broken: int | None = None
    """The first line, from 1, that is not as it was written; None if the chain is whole."""
    problem: str = ""
    """What is wrong with it."""


def verify(path: Path) -> Verdict:
    """Check the chain of the log `path` and, by the head beside it, that its end was not cut off.

    A last line without its line break, as a crash while it was written leaves it, counts as not written.

    Raises:
        UserError: the log cannot be read.
    """
    lines, head = _read(Path(path))
    hashes = [sha256(line) for line in lines]
    parsed = [_parse(line) for line in lines]
    last = hashes[-1] if hashes else BEGINNING

    def broken(line: int, problem: str) -> Verdict:
        return Verdict(len(lines), last, line, problem)

    for at, entry in enumerate(parsed):
        if entry is None:
            return broken(at + 1, "is not a line of this log")
        if entry["seq"] != at + 1:
            return broken(at + 1, f"is numbered {entry['seq']}: lines were removed, inserted or moved here")
        if entry["previous"] != (hashes[at - 1] if at else BEGINNING):
            # either this line or the one before was changed; the line after tells whether it was this one
            after = parsed[at + 1] if at + 1 < len(parsed) else None
            witness = after["previous"] if after else head[1] if head and head[0] == len(lines) else None
            this = at == 0 or (witness is not None and witness != hashes[at])
            return broken(at + 1 if this else at, "was changed")
        if entry["event"] == DAMAGED:
            return broken(at + 1, f"tells of damage: {entry['fields'].get('problem')}")
    problem = _cut(hashes, head)
    return broken(*problem) if problem else Verdict(len(lines), last)


def entries(path: Path) -> list[dict[str, Any]]:
    """The lines of the log `path` that can be read, oldest first.

    Raises:
        UserError: the log cannot be read.
    """
    return [entry for line in _read(path)[0] if (entry := _parse(line))]


def holds(path: Path, head: str) -> bool:
    """Whether a line of the log `path` has the hash `head`, or tells that none has.

    Raises:
        UserError: the log cannot be read.
    """
    lines = _read(Path(path))[0]
    if any(sha256(line) == head for line in reversed(lines)):
        return True
    told = (_parse(line) for line in lines if head.encode() in line)
    return any(entry and entry["event"] == DAMAGED and entry["fields"].get("head") == head for entry in told)


def sha256(content: bytes | memoryview) -> str:
    """As hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


class _Writer:
    """Appends to the open and locked log."""

    def __init__(self, folder: Path, log: int):
        self._folder, self._log = folder, log
        os.fchmod(log, 0o600)
        self._head = _read_head(folder / HEAD)

    def write(self, event: str, fields: Mapping[str, Any]) -> str:
        """Append a line after those that are needed to tell what happened to the log itself; its hash."""
        if self._head is None and not os.lseek(self._log, 0, os.SEEK_END):
            self._write_head(0, BEGINNING)  # before the first line: a log without a head was never left by a crash
        if torn := self._set_torn_aside():
            self._append(*self._next(), TORN, torn)
        seq, previous = self._next()
        if problem := self._damage():
            self._append(seq, previous, DAMAGED, {"problem": problem})
            seq, previous = self._next()
        self._append(seq, previous, event, fields)
        return self._head[1]

    def _append(self, seq: int, previous: str, event: str, fields: Mapping[str, Any]) -> None:
        entry = {"seq": seq, "time": _now(), "event": event, "fields": _plain(fields), "previous": previous}
        line = json.dumps(entry, separators=(",", ":")).encode()
        size = os.lseek(self._log, 0, os.SEEK_END)
        try:
            _write_all(self._log, line + b"\n")
            os.fsync(self._log)
        except OSError:
            # half a line is worse than none
            with suppress(OSError):
                os.ftruncate(self._log, size)
            raise
        self._write_head(seq, sha256(line))

    def _write_head(self, count: int, last: str) -> None:
        # in place and of one length: a file of one block that is there already can be written on a full disk
        self._head = count, last
        descriptor = os.open(self._folder / HEAD, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, json.dumps({"lines": f"{count:012d}", "last": last}).encode() + b"\n", 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _next(self) -> tuple[int, str]:
        """Number of the next line, and the hash that goes into it.

        Both are what the head says was written last, so that whatever was done to the log stays visible in the chain.
        """
        line, entry = self._last()
        count, last = self._head or (0, BEGINNING)
        if entry and (self._head is None or (entry["seq"] == count + 1 and entry["previous"] == last)):
            return entry["seq"] + 1, sha256(line)  # ended between writing the line and the head
        return max(count, entry["seq"] if entry else 0) + 1, last

    def _damage(self) -> str | None:
        line, entry = self._last()
        if self._head is None:
            return None if line is None else f"{HEAD} was missing"
        count, last = self._head
        if (entry["seq"] if entry else 0, sha256(line) if line else BEGINNING) == (count, last):
            return None
        if entry and entry["seq"] == count + 1 and entry["previous"] == last:
            return None
        return f"the log did not end with line {count} of {HEAD}"

    def _last(self) -> tuple[bytes | None, dict[str, Any] | None]:
        """The last whole line, without its line break."""
        size = os.lseek(self._log, 0, os.SEEK_END)
        tail, length = b"", 4096
        while True:
            start = max(0, size - length)
            tail = os.pread(self._log, size - start, start)
            if start == 0 or tail.count(b"\n") > 1:
                break
            length *= 4
        lines = tail.split(b"\n")[:-1]
        return (lines[-1], _parse(lines[-1])) if lines else (None, None)

    def _set_torn_aside(self) -> dict[str, Any] | None:
        """Move what stands after the last line break into a file of its own; None if there is nothing."""
        size = os.lseek(self._log, 0, os.SEEK_END)
        text = b""
        while len(text) < size:
            start = max(0, size - 2 * len(text) - 4096)
            text = os.pread(self._log, size - start, start)
            if b"\n" in text:
                break
        torn = text[text.rfind(b"\n") + 1 :]
        if not torn:
            return None
        number = next(n for n in range(1, 10**6) if not (self._folder / f"{LOG}.torn-{n}").exists())
        aside = self._folder / f"{LOG}.torn-{number}"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write_all(descriptor, torn)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.ftruncate(self._log, size - len(torn))
        return {"file": aside.name, "bytes": len(torn), "sha256": sha256(torn)}


@contextmanager
def _locked(path: Path, flags: int, lock: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, lock)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(path: Path) -> tuple[list[bytes], tuple[int, str] | None]:
    """The whole lines of the log, and its head; while nobody writes."""
    try:
        with _locked(path, os.O_RDONLY, fcntl.LOCK_SH) as log, os.fdopen(os.dup(log), "rb") as file:
            return file.read().split(b"\n")[:-1], _read_head(path.with_name(HEAD))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "the log begins when the client is first started") from None
    except OSError as error:
        raise UserError(f"{path}: could not be read: {error.strerror or error}", "mend the permissions") from None


def _read_head(path: Path) -> tuple[int, str] | None:
    try:
        head = json.loads(path.read_bytes())
        return int(head["lines"]), str(head["last"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cut(hashes: list[str], head: tuple[int, str] | None) -> tuple[int, str] | None:
    """What the head tells against the end of the log: line and problem."""
    lines = len(hashes)
    if head is None:
        return (lines + 1, f"may be missing: there is no {HEAD}") if lines else None
    count, last = head
    if count > lines:
        return lines + 1, f"and all that follow are missing: {count} lines were written"
    if last == (hashes[count - 1] if count else BEGINNING):
        # one line more than the head knows: a crash between the two
        return None if lines - count <= 1 else (count + 1, f"and all that follow are unknown to {HEAD}")
    return count, "was changed"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    types = {"seq": int, "time": str, "event": str, "fields": dict, "previous": str}
    if not isinstance(entry, dict) or any(not isinstance(entry.get(key), kind) for key, kind in types.items()):
        return None
    return entry


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _plain(value: Any) -> Any:
    """`value` in JSON's own types: no NaN, no text without end."""
    if isinstance(value, Mapping):
        return {shown(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return shown(value)
