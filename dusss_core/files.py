"""Files that are either whole or absent: temporary name, fsync, rename."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import IO, Any

from dusss_core.errors import UserError
from dusss_core.quota import check_room
from dusss_core.tensorfile import chunks, raw

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp", re.ASCII)
"""What `write_atomically` calls the file that it fills; the number is that of its process."""
DIGEST = "file_sha256"
"""In the head of a file that is checked when it is read: SHA-256 of all its bytes, as they are with zeros here."""
_ZEROS = b"0" * 64
LOOKED_AT_S = 0.3
"""Whoever only looks whether a lock is held, as a page that follows a run, holds it for a moment; in seconds."""


def write_atomically(path: Path, write: Callable[[Path], None], over: Path | None = None, *, size: int = 0) -> None:
    """Let `write` fill a temporary sibling of `path`, flush it to the disk and rename it.

    A crash, a full disk or an error in `write` leaves the previous file untouched.

    Args:
        over: a file in the same folder that nobody needs or reads any more, if it is there: it becomes the temporary
            one, and `write` finds it. To write over it costs a fifth of what fresh room costs.
        size: bytes that `write` writes, about, for `dusss_core.quota`.

    Raises:
        UserError: the file system refused (disk full, no permission).
        NoRoom: `dusss_core.quota` does.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    check_room(path, size - (over.stat().st_size if over is not None and over.is_file() else 0))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if over is not None:
            with suppress(FileNotFoundError):
                over.replace(temporary)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path}: could not be written: {error.strerror or error}",
            "free disk space or mend the permissions, then start again; the file that was there before is untouched",
        ) from error
    finally:
        with suppress(OSError):  # a disk that is read-only refuses this too, also where there is nothing to remove
            temporary.unlink(missing_ok=True)


def check_replaceable(path: Path, what: str, is_one: Callable[[Path], bool]) -> None:
    """Look whether a command may write to `path`, before it works for that: nothing is there, or what the same command
    writes.

    Args:
        what: that, for people.
        is_one: whether a file is such a one.

    Raises:
        UserError: it is a folder, or another file.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder", "name a file in it for --out")
    try:
        if not os.path.lexists(path) or is_one(path):
            return
    except (OSError, UserError):
        pass
    raise UserError(
        f"{path}: it is there already and not {what}, and would be written over",
        "name another file for --out, or move that one away",
    )


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter, and what is missing above it. (`mkdir` gives its mode to the last
    folder alone.)

    Raises:
        OSError: it cannot be made.
    """
    for part in (*reversed(folder.parents), folder):
        if not part.is_dir():
            part.mkdir(mode=0o700, exist_ok=True)


def close_to_others(folder: Path) -> bool:
    """Let nobody but its owner into a folder of this account's that others may look into.

    Returns:
        Whether they could; not of a folder that is another account's.

    Raises:
        OSError: the file system does not allow it.
    """
    about = folder.stat()
    if about.st_uid != os.geteuid() or not about.st_mode & 0o077:
        return False
    folder.chmod(about.st_mode & 0o700)
    return True


def make_private(folder: Path) -> None:
    """As `private_folder`, of a site's state.

    Raises:
        UserError: it cannot be made.
    """
    try:
        private_folder(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: could not be made: {error.strerror or error}", "mend the permissions or the site's state_dir"
        ) from None


def clear_unfinished(folder: Path) -> None:
    """Delete what writers that were killed have left in `folder` and below it: each as large as the file it was to be.

    To be called by a process that has not begun to write there. What processes write that live stays.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            if (writer := _TEMPORARY.fullmatch(name)) and not _lives(int(writer[1])):
                with suppress(OSError):
                    (Path(place) / name).unlink()


def _lives(process: int) -> bool:
    """Whether another process with that number is there: our own had it by chance before."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content) and None, size=len(content))


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` atomically, as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON with a final newline."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_tensors(
    path: Path,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    over: Path | None = None,
    *,
    checked: bool = False,
) -> None:
    """Write torch tensors to a safetensors file atomically. They are not copied.

    Args:
        metadata: goes into the header.
        over: as `write_atomically`.
        checked: `read_tensors` notices every byte that has changed since.

    Raises:
        UserError: as `write_atomically`.
    """
    told = {**(metadata or {}), **({DIGEST: _ZEROS.decode()} if checked else {})}

    def write(temporary: Path) -> None:
        digest, at = hashlib.sha256(), 0
        with temporary.open("r+b" if temporary.exists() else "wb", buffering=0) as file:
            for piece in chunks(tensors, told):
                if checked:
                    at = at or bytes(piece).index(f'"{DIGEST}":"'.encode()) + len(DIGEST) + 4
                    digest.update(piece)
                _write_all(file, piece)
            file.truncate()
            if checked:
                file.seek(at)
                _write_all(file, digest.hexdigest().encode())

    write_atomically(path, write, over, size=sum(tensor.nbytes for tensor in tensors.values()))


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors by name, and the header's metadata.

    Raises:
        UserError: the file is missing, may not be read or is not a whole safetensors file; of one that was written
            `checked` (older ones were not), a byte has changed since.
    """
    with _opened(path) as file:
        metadata = dict(file.metadata() or {})
        if DIGEST in metadata and _digest_of_file(path, metadata[DIGEST]) != metadata[DIGEST]:
            raise UserError(f"{path}: damaged: its bytes are not those that were written", "put back a whole copy")
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file, whose tensors stay unread.

    Raises:
        UserError: as `read_tensors`.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        # safetensors calls a file missing that may not be read
        with Path(path).open("rb"):
            pass
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "check the path") from None
    except OSError as error:
        raise UserError(
            f"{path}: could not be read: {error.strerror or error}", "mend its permissions, or name another file"
        ) from None
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error})",
            "if it is one, copy it again; in commands that use a finished model the student's file comes first",
        ) from None


@contextmanager
def exclusive(path: Path, wait_s: float = 0.0) -> Iterator[IO[str]]:
    """Hold a lock file for this process alone; the system lets go of it when the process ends, however it ends.

    Yields:
        The file that is held.

    Raises:
        BlockingIOError: another process still holds it after `wait_s` seconds.
    """
    with Path(path).open("w") as file:
        give_up = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise
                time.sleep(0.05)
        yield file


def digest_of_tensors(tensors: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of `tensors`, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(raw(tensor))
    return digest.hexdigest()


def with_prefix(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _write_all(file: RawIOBase, piece: bytes | memoryview) -> None:
    rest = memoryview(piece)
    while len(rest):
        rest = rest[file.write(rest) :]


def _digest_of_file(path: Path, told: str) -> str:
    """What DIGEST of a file is, in which `told` stands."""
    with Path(path).open("rb") as file:
        length = file.read(8)
        head = length + file.read(int.from_bytes(length, "little"))
        digest = hashlib.sha256(head.replace(told.encode(), _ZEROS, 1))
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
