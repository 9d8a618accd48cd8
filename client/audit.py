"""What came to this site, what left it and what was decided: state_dir/audit.jsonl, one line of JSON per event.

Every line holds the SHA-256 of the line before, so a line that is changed, removed, inserted or moved breaks the chain
at its place. The chain alone cannot show that lines at its end were cut off; state_dir/audit.head, which holds the
number of lines and the hash of the last one, does. What neither can show: somebody who may write in the folder, and
rewrites both files from some line on. Against that, note the last hash that `python -m client audit` prints in a place
that this account cannot write to.

The supervisor, the guard and the workers all write here, under a lock on the file itself. Nothing of it is ever sent.
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
from typing import TYPE_CHECKING, Any

from client.state import make_private
from dusss_core.errors import UserError

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from sites.config import SiteConfig

LOG, HEAD = "audit.jsonl", "audit.head"
BEGINNING = "0" * 64
"""The hash before the first line."""
TORN, DAMAGED = "torn line set aside", "log damaged"
"""Events about the log itself."""
_LONGEST_TEXT = 500


class Unrecorded(UserError):
    """The audit log could not be written. What was to be recorded must not happen."""


def record(state_dir: Path, event: str, **fields: Any) -> None:
    """Append one line, and return when it is on the disk.

    Args:
        event: what happened, in a word or two.
        fields: numbers, short texts, lists and mappings of them; long texts are cut.

    Raises:
        Unrecorded: the line is not in the log (disk full, no permission). The lines before are untouched.
    """
    state_dir = Path(state_dir)
    try:
        make_private(state_dir)
        with _locked(state_dir / LOG, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as log:
            _Writer(state_dir, log).write(event, fields)
    except UserError as error:
        raise Unrecorded(error.problem, error.remedy) from error
    except OSError as error:
        raise Unrecorded(
            f"{state_dir / LOG}: could not be written: {error.strerror or error}",
            "free disk space or mend the permissions; until then this site answers no message",
        ) from error


def incoming(content: RecordDict) -> dict[str, Any]:
    """What a message holds, as fields for `record`. The message is not trusted: texts are cut, nothing is decoded."""
    config = next(iter(content.config_records.values()), {})
    training = config.get("training")
    named = {key: config[key] for key in ("run_key", "phase", "round", "what", "vlm_digest") if config.get(key)}
    return {
        **named,
        "settings": _sha256(training.encode()) if isinstance(training, str) else None,
        "tensors": {name: len(arrays) for name, arrays in content.array_records.items()},
        "bytes": sum(len(array.data) for arrays in content.array_records.values() for array in arrays.values()),
    }


def outgoing(content: RecordDict) -> dict[str, Any]:
    """All that an answer holds, as fields for `record`: each tensor's size and the hash of its bytes as they travel."""
    tensors = {
        name: {
            "dtype": array.dtype,
            "shape": list(array.shape),
            "bytes": len(array.data),
            "sha256": _sha256(array.data),
        }
        for arrays in content.array_records.values()
        for name, array in arrays.items()
    }
    return {
        "bytes": sum(tensor["bytes"] for tensor in tensors.values()),
        "metrics": {k: v for metrics in content.metric_records.values() for k, v in metrics.items()},
        "texts": {k: v for texts in content.config_records.values() for k, v in texts.items()},
        "tensors": tensors,
    }


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
    """Check the chain of the log `path` and, by audit.head beside it, that its end was not cut off.

    A last line without its line break, as a crash while it was written leaves it, counts as not written.

    Raises:
        UserError: the log cannot be read.
    """
    lines, head = _read(Path(path))
    hashes = [_sha256(line) for line in lines]
    entries = [_parse(line) for line in lines]
    last = hashes[-1] if hashes else BEGINNING

    def broken(line: int, problem: str) -> Verdict:
        return Verdict(len(lines), last, line, problem)

    for at, entry in enumerate(entries):
        if entry is None:
            return broken(at + 1, "is not a line of this log")
        if entry["seq"] != at + 1:
            return broken(at + 1, f"is numbered {entry['seq']}: lines were removed, inserted or moved here")
        if entry["previous"] != (hashes[at - 1] if at else BEGINNING):
            # either this line or the one before was changed; the line after tells whether it was this one
            after = entries[at + 1] if at + 1 < len(entries) else None
            witness = after["previous"] if after else head[1] if head and head[0] == len(lines) else None
            this = at == 0 or (witness is not None and witness != hashes[at])
            return broken(at + 1 if this else at, "was changed")
        if entry["event"] == DAMAGED:
            return broken(at + 1, f"tells of damage: {entry['fields'].get('problem')}")
    problem = _cut(hashes, head)
    return broken(*problem) if problem else Verdict(len(lines), last)


def print_log(site: SiteConfig, *, as_json: bool = False, last: int | None = None) -> int:
    """Verify this site's log and print it, or its last lines.

    Returns:
        0 if the chain is whole, 1 if it is broken.

    Raises:
        UserError: there is no log, or it cannot be read.
    """
    path = site.state_dir / LOG
    verdict = verify(path)
    entries = [entry for line in _read(path)[0] if (entry := _parse(line))]
    shown = entries[-last:] if last else entries
    if as_json:
        print(json.dumps({"log": str(path), "chain": vars(verdict), "entries": shown}))
    else:
        _print_table(path, verdict, shown)
    return 0 if verdict.broken is None else 1


# The file.


class _Writer:
    """Appends to the open and locked log."""

    def __init__(self, folder: Path, log: int):
        self._folder, self._log = folder, log
        os.fchmod(log, 0o600)
        self._head = _read_head(folder / HEAD)

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """Append a line after those that are needed to tell what happened to the log itself."""
        if torn := self._set_torn_aside():
            self._append(*self._next(), TORN, torn)
        seq, previous = self._next()
        if problem := self._damage():
            self._append(seq, previous, DAMAGED, {"problem": problem})
            seq, previous = self._next()
        self._append(seq, previous, event, fields)

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
        self._write_head(seq, _sha256(line))

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
            return entry["seq"] + 1, _sha256(line)  # ended between writing the line and the head
        return max(count, entry["seq"] if entry else 0) + 1, last

    def _damage(self) -> str | None:
        line, entry = self._last()
        if self._head is None:
            return None if line is None or (entry and entry["seq"] == 1) else f"{HEAD} was missing"
        count, last = self._head
        if (entry["seq"] if entry else 0, _sha256(line) if line else BEGINNING) == (count, last):
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
        return {"file": aside.name, "bytes": len(torn), "sha256": _sha256(torn)}


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
        # a crash after the very first line leaves it without a head
        return (lines + 1, f"may be missing: there is no {HEAD}") if lines > 1 else None
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
    except ValueError:
        return None
    types = {"seq": int, "time": str, "event": str, "fields": dict, "previous": str}
    if not isinstance(entry, dict) or any(not isinstance(entry.get(key), kind) for key, kind in types.items()):
        return None
    return entry


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _plain(value: Any) -> Any:
    """`value` in JSON's own types: no NaN, no text without end."""
    if isinstance(value, Mapping):
        return {str(key)[:_LONGEST_TEXT]: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)[:_LONGEST_TEXT]


# The table.


def _print_table(path: Path, verdict: Verdict, entries: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table("line", "time (UTC)", "event", "what", box=None, pad_edge=False, header_style="bold")
    for entry in entries:
        time = entry["time"][:19].replace("T", " ")
        table.add_row(str(entry["seq"]), time, Text(_shown(entry["event"])), Text(_told(entry["fields"])))
    console.print(table)
    if verdict.broken is None:
        console.print(
            Text(f"{path}: {verdict.lines} lines, the chain is whole; last hash {verdict.last}", style="green")
        )
    else:
        console.print(Text(f"{path}: line {verdict.broken} {verdict.problem}", style="red"))
        console.print(
            f"  -> find out who changed it; to begin a new log, move {LOG} and {HEAD} away and keep them", markup=False
        )


def _told(fields: Mapping[str, Any]) -> str:
    """The fields in one line; tensors and metrics as their number."""
    parts = []
    for key, value in fields.items():
        if value in (None, "", {}, []):
            continue
        if isinstance(value, dict) and key != "texts":
            parts.append(f"{len(value)} {key}")
        elif isinstance(value, dict):
            parts.append(", ".join(f"{name} {inner}" for name, inner in value.items() if inner != ""))
        elif isinstance(value, str) and len(value) == 64:
            parts.append(f"{key} {value[:12]}…")
        else:
            parts.append(f"{key} {value}")
    return _shown("; ".join(parts))


def _shown(text: str) -> str:
    """One line without control characters."""
    return "".join(c if c.isprintable() else " " for c in text)
