"""Looks at every record on all cores, in flat memory: what was seen goes to the site's disk, and a check that was
broken off goes on from there.

STATE_DIR/check/looks         numbers of the records that were looked at, one LOOK behind the other
STATE_DIR/check/words.jsonl   what could not be used, and names of header fields, a line for each record that has any
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from dusss_core.files import private_folder
from dusss_core.manifest import Record
from sites.check.look import LOOK, look_at, stamp_of
from sites.packing import Progress, in_order_by

BLOCK = 32
"""Records that a worker looks at before it answers."""
FEW = 400
"""With fewer new records than this threads do: processes take seconds to start."""


@dataclass
class Scan:
    """What was seen of all records, in their order."""

    looks: np.ndarray
    """N, LOOK; mapped from the disk where it lies there."""
    problems: dict[int, list[tuple[str, str, str]]]
    """Position of a record -> (kind, what, remedy) of what can not be used."""
    tags: dict[int, tuple[str, ...]]
    """Position -> header fields that may identify a person."""
    known: int
    """Records that an earlier check had looked at."""


def scan(
    records: Sequence[Record],
    folder: Path | None,
    progress: Progress,
    *,
    fresh: bool = False,
    workers: int | None = None,
) -> Scan:
    """Look at every record whose files have changed since the last time, and keep what was seen in `folder`.

    Args:
        folder: None: nothing is kept, and all of it is held in memory.
        progress: called with records done and records in all.
        fresh: forget what earlier checks have seen.
        workers: processes; None: one for each core that this process may use.
    """
    stamps = [stamp_of(record) for record in records]
    with _kept(folder, fresh) as store:
        place = {stamp.decode(): i for i, stamp in enumerate(store.looks["stamp"])}
        missing = [i for i, stamp in enumerate(stamps) if stamp not in place]
        known = done = len(records) - len(missing)
        progress(done, len(records))
        for block in _looked_at([records[i] for i in missing], workers):
            store.add(block)
            done += len(block)
            progress(done, len(records))
        looks, words = store.finish()
    place = {stamp.decode(): i for i, stamp in enumerate(looks["stamp"])}
    order = np.array([place[stamp] for stamp in stamps], dtype=np.int64)
    found = [(i, words[stamp]) for i, stamp in enumerate(stamps) if stamp in words]
    return Scan(
        looks if np.array_equal(order, np.arange(len(looks))) else looks[order],
        {i: [tuple(problem) for problem in word["problems"]] for i, word in found if word["problems"]},
        {i: tuple(word["tags"]) for i, word in found if word["tags"]},
        known,
    )


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def look_block(records: Sequence[Record]) -> list[tuple[bytes, str]]:
    """Look at some records: each as the bytes of its LOOK and its line for words.jsonl, '' if there is nothing to
    say."""
    return [_packed(look_at(record)) for record in records]


def _packed(looked) -> tuple[bytes, str]:
    if not (looked.problems or looked.tags):
        return looked.look.tobytes(), ""
    line = {"stamp": looked.look["stamp"].item().decode(), "problems": looked.problems, "tags": looked.tags}
    return looked.look.tobytes(), json.dumps(line) + "\n"


def _looked_at(records: Sequence[Record], workers: int | None) -> Iterator[list[tuple[bytes, str]]]:
    if not records:
        return
    workers = workers or cores()
    blocks = (records[i : i + BLOCK] for i in range(0, len(records), BLOCK))
    pool: Executor
    if len(records) < FEW:
        pool = ThreadPoolExecutor(workers)
    else:
        # spawned, not forked: the parent may hold threads
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    yield from in_order_by(pool, look_block, blocks, ahead=2 * workers)


class _Store:
    """Two files that grow by whole blocks; what a killed check has left half-written is cut off."""

    def __init__(self, looks: IO[bytes], words: IO[bytes], path: Path | None):
        self._looks_file, self._words_file, self._path = looks, words, path
        size = looks.seek(0, os.SEEK_END) // LOOK.itemsize * LOOK.itemsize
        looks.truncate(size)
        self.looks = self._read()

    def add(self, block: list[tuple[bytes, str]]) -> None:
        # words first: a record counts as seen once its numbers are there
        self._words_file.write("".join(line for _, line in block).encode())
        self._words_file.flush()
        self._looks_file.seek(0, os.SEEK_END)
        self._looks_file.write(b"".join(look for look, _ in block))
        self._looks_file.flush()

    def finish(self) -> tuple[np.ndarray, dict[str, dict]]:
        self._words_file.seek(0)
        words = {}
        for line in self._words_file.read().decode(errors="replace").splitlines():
            with suppress(
                ValueError, TypeError, KeyError
            ):  # half a line of a killed check: its record was looked at anew
                word = json.loads(line)
                words[word["stamp"]] = word
        return self._read(), words

    def _read(self) -> np.ndarray:
        size = self._looks_file.seek(0, os.SEEK_END)
        if self._path is not None and size:
            return np.memmap(self._path, LOOK, "r", shape=(size // LOOK.itemsize,))
        self._looks_file.seek(0)
        return np.frombuffer(self._looks_file.read(), LOOK)


@contextmanager
def _kept(folder: Path | None, fresh: bool) -> Iterator[_Store]:
    from io import BytesIO

    try:
        if folder is None:
            raise OSError
        private_folder(folder)
        mode = "w+b" if fresh else "r+b"
        paths = [folder / "looks", folder / "words.jsonl"]
        for path in paths:
            path.touch(mode=0o600)
        files = [path.open(mode) for path in paths]
    except OSError:  # nowhere to keep it, or a disk that is only read
        yield _Store(BytesIO(), BytesIO(), None)
        return
    files[1].seek(0, os.SEEK_END)
    try:
        yield _Store(files[0], files[1], paths[0])
    finally:
        for file in files:
            file.close()
