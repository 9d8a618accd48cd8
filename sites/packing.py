"""Pictures prepared once and kept as plain arrays on the site's disk, so that training only maps them."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from dusss_core.errors import UserError
from dusss_core.files import private_folder, write_json
from dusss_core.quota import no_room, room

FORMAT = 3
"""Raised when the same inputs would give other arrays, so that older caches are not used."""
KEPT_PACKS = 4
THREADS = 2
Progress = Callable[[int, int], None]
"""Called with pictures done and pictures in all."""

_STALE_SECONDS = 3600
_HEADER_BYTES = 128
Item = TypeVar("Item")
Result = TypeVar("Result")


class ArrayWriter:
    """A uint8 .npy file whose first axis grows with every `append`."""

    def __init__(self, file: BinaryIO, item_shape: tuple[int, ...], take: Callable[[int], None]):
        self._file, self._take = file, take
        self._item_shape = item_shape
        self.length = 0
        """Items so far."""
        file.write(self._header())

    def append(self, items: np.ndarray) -> None:
        """Add `items`, n x item_shape, uint8.

        Raises:
            NoRoom: the site allows no more.
        """
        self._take(items.size)
        self._file.write(np.ascontiguousarray(items, dtype=np.uint8).data)
        self.length += len(items)

    def finish(self) -> None:
        """Write the true length into the header."""
        self._file.seek(0)
        self._file.write(self._header())
        self._file.flush()

    def _header(self) -> bytes:
        out = io.BytesIO()
        shape = (self.length, *self._item_shape)
        np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
        header = out.getvalue()
        assert len(header) == _HEADER_BYTES  # numpy leaves room for the first axis to grow
        return header


class Pack:
    """A set of named uint8 arrays and an index, in a folder or (without one) in memory."""

    def __init__(self, arrays: dict[str, np.ndarray], index: dict):
        self.arrays = arrays
        self.index = index


class PackBuilder:
    """Collects the arrays of a `Pack`."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._room = math.inf if folder is None else room(folder)
        self._files: dict[str, BinaryIO] = {}
        self._writers: dict[str, ArrayWriter] = {}
        self.index: dict = {}

    def add_array(self, name: str, item_shape: tuple[int, ...]) -> ArrayWriter:
        """A new, empty array."""
        file = io.BytesIO() if self._folder is None else (self._folder / f"{name}.npy").open("w+b")
        self._files[name] = file
        self._writers[name] = ArrayWriter(file, item_shape, self._take)
        return self._writers[name]

    def finish(self) -> None:
        """Flush every array, and the index last, to the disk."""
        for name, writer in self._writers.items():
            writer.finish()
            if self._folder is not None:
                os.fsync(self._files[name].fileno())
                self._files[name].close()
        if self._folder is not None:
            write_json(self._folder / "index.json", self.index)

    def _take(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise no_room(self._folder)

    def in_memory(self) -> Pack:
        """The finished pack, where there is no folder."""
        arrays = {}
        for name, file in self._files.items():
            file.seek(0)
            arrays[name] = np.load(file)
        return Pack(arrays, self.index)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()


def load_or_build(cache: Path | None, digest: str, build: Callable[[PackBuilder], None]) -> Pack:
    """The pack `digest` in the folder `cache`, built first where it is absent; in memory without a folder.

    A pack appears under its name only when it is whole: it is written into a temporary sibling, flushed and
    renamed. The `KEPT_PACKS` that were used last are kept: other picture settings and older data have their own.
    Several processes may do so at once; of those that build the same pack, all use the first that is whole.

    Raises:
        UserError: the disk is full or not writable; and what `build` raises.
    """
    if cache is None:
        builder = PackBuilder(None)
        build(builder)
        builder.finish()
        return builder.in_memory()
    target = cache / digest
    _make_sure(target, build)
    try:
        return _load(target)
    except FileNotFoundError:  # another process has dropped it since, to make room for its own
        _make_sure(target, build)
        return _load(target)
    except (ValueError, EOFError):  # damaged since, as by a disk: it is made of pictures that are still there
        (target / "index.json").unlink(missing_ok=True)
        _make_sure(target, build)
        return _load(target)


def digest_of(*parts: object) -> str:
    """32 hex digits over the JSON of `parts` and the cache's format."""
    return hashlib.sha256(json.dumps([FORMAT, *parts], default=str).encode()).hexdigest()[:32]


def in_order(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`work(item)` for every item, in order, by a few threads that run only a little ahead of the reader."""
    yield from in_order_by(ThreadPoolExecutor(THREADS), work, items, ahead=16 * THREADS)


def in_order_by(pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """`work(item)` for every item, in order, by `pool`, at most `ahead` before the reader; the pool ends with it."""
    waiting = iter(items)
    running = [pool.submit(work, item) for item in islice(waiting, ahead)]
    try:
        while running:
            yield running.pop(0).result()
            running += [pool.submit(work, item) for item in islice(waiting, 1)]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def console_progress(title: str, instead: Progress | None = None, patience: float = 2.0) -> Iterator[Progress]:
    """A progress bar on stderr for work that takes longer than `patience` seconds (plain lines off a
    terminal), or the callback `instead`."""
    if instead is not None:
        yield instead
        return
    start = time.monotonic()
    bar = task = None
    last = start

    def show(done: int, total: int) -> None:
        nonlocal bar, task, last
        now = time.monotonic()
        if now - start < patience:
            return
        if not sys.stderr.isatty():
            if last == start or now - last > 10 or done == total:
                print(f"{title}: {done} of {total}", file=sys.stderr, flush=True)
                last = now
            return
        if bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            bar = Bar(*columns, console=Console(stderr=True), transient=True)
            bar.start()
            task = bar.add_task(title, total=total)
        bar.update(task, completed=done)

    try:
        yield show
    finally:
        if bar is not None:
            bar.stop()


def _make_sure(target: Path, build: Callable[[PackBuilder], None]) -> None:
    """The pack is there, and the last one that was used."""
    if not (target / "index.json").is_file():
        try:
            _build_folder(target, build)
        except OSError as error:
            raise UserError(
                f"{target}: the picture cache could not be written: {error.strerror or error}",
                "free disk space or mend the permissions, or set data.cache: false",
            ) from error
    with suppress(OSError):
        os.utime(target)
    _drop_old(target.parent, but=target)


def _load(target: Path) -> Pack:
    """The index is read last, since it is the first to go: while it is there, all arrays were."""
    arrays = {file.stem: np.load(file, mmap_mode="r") for file in target.glob("*.npy")}
    return Pack(arrays, json.loads((target / "index.json").read_text()))


def _build_folder(target: Path, build: Callable[[PackBuilder], None]) -> None:
    private_folder(target.parent)  # pictures and masks of patients
    _remove_stale(target.parent)
    temporary = target.with_name(f"{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    builder = PackBuilder(temporary)
    try:
        build(builder)
        builder.finish()
        _name(temporary, target)
    finally:
        builder.close()
        shutil.rmtree(temporary, ignore_errors=True)


def _name(temporary: Path, target: Path) -> None:
    """Let a whole pack appear under its name. Where another process was faster, its pack stays, which is as good and
    may be in use."""
    try:
        temporary.rename(target)
    except OSError as error:
        if (target / "index.json").is_file():
            return
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # half a folder, which a process left that was killed; moved away at once, as another's pack may follow it
        half = temporary.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        with suppress(FileNotFoundError):
            target.rename(half)
        shutil.rmtree(half, ignore_errors=True)
        _name(temporary, target)


def _drop_old(cache: Path, but: Path) -> None:
    """Who has a dropped pack open can go on to read it."""
    others = [index.parent for index in cache.glob("*/index.json") if index.parent not in (but, but.resolve())]
    others = [folder for folder in others if re.fullmatch(r"[0-9a-f]{32}", folder.name)]
    for folder in sorted(others, key=_when_used)[: -(KEPT_PACKS - 1)]:
        with suppress(OSError):
            (folder / "index.json").unlink()  # what follows is no pack any more
        shutil.rmtree(folder, ignore_errors=True)


def _when_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # another process dropped it
        return 0.0


def _remove_stale(cache: Path) -> None:
    """Delete what killed packings left; younger folders may belong to a process that is at work."""
    for folder in cache.glob("*.tmp"):
        if _is_stale(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_stale(folder: Path) -> bool:
    try:
        newest = max(file.stat().st_mtime for file in [folder, *folder.glob("*")])
    except OSError:  # its process has just given it its name, or removed it
        return False
    return time.time() - newest > _STALE_SECONDS
