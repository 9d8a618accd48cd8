"""python -m dusss_core predict: a finished student over files, with progress, and gone on with where it was cut off."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dusss_core.errors import UserError
from dusss_core.files import write_json
from dusss_core.predicting.inputs import Job, find_jobs, pictures_of
from dusss_core.predicting.outputs import Writer
from dusss_core.predicting.segmentation import segments_of
from dusss_core.predicting.sentences import sentences_for
from dusss_core.predicting.targets import check_free, check_targets
from dusss_core.readers import Raw
from dusss_core.student.student import Student

JOURNAL = "predictions.jsonl"
"""A line for each job that is done: it is left out the next time, unless its files or the model have changed."""
BEGUN = f".{JOURNAL}.begun"
"""The names of jobs that a run has begun, until all are done: what it left of them is no stranger's, and may be written
over."""
_AHEAD = 4
"""Batches that are read while the network works."""
_MOST_TOLD = 20
_TORN = re.compile(r'^\{"name": ("(?:[^"\\]|\\.)*"),.*[^}\n]$', re.MULTILINE)
Said = Callable[[Job, int], str]
"""The sentence of a job's picture, by its number in the job."""


@dataclass
class Tally:
    """What became of the jobs."""

    done: int = 0
    pictures: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    """Why, and what would mend it, of each."""


def predict(
    student: Student,
    paths: Sequence[Path | str],
    out: Path,
    *,
    overlay: bool = False,
    probabilities: bool = False,
    codes: Sequence[str] = (),
    sheet: Path | None = None,
    partial: bool = False,
) -> Tally:
    """Predict every picture in `paths` into the folder `out`.

    Files that cannot be read are told, and the others done.

    Args:
        sheet: sentences of the pictures (`dusss_core.predicting.sentences`), for a student that listens.
        partial: the sheet may lack pictures, and name others.

    Raises:
        UserError: no pictures, a student that must be fitted first, a sheet that does not fit the pictures, outputs
            that would be written over a picture, over each other or over files that are not of the same sources, disk
            full.
    """
    segments = segments_of(student.about, codes)
    student.check_usable()
    jobs = find_jobs(paths, out)
    owners = check_targets(jobs, out, student.about.image.classes, overlay, probabilities)
    said: Said = _nothing if sheet is None else sentences_for(sheet, jobs, partial)
    options = {"overlay": overlay, "probabilities": probabilities, "codes": list(codes)}
    if sheet is not None:
        options["text"] = student.ears.digest
    journal = _Journal(out, student, options, said)
    check_free(owners, journal.objection(jobs))
    waiting = [job for job in jobs if not journal.has(job)]
    if sheet is not None and (first := sorted({said(job, 0) for job in waiting} - {""})):
        student.ears.learn(first)
    tally = Tally(skipped=len(jobs) - len(waiting))
    _make_folder(out)
    journal.begin(waiting)
    with _progress(len(jobs), tally.skipped) as advance:
        plain = [job for job in waiting if job.kind == "picture"]
        for job, result in _each(student, plain, tally, said):
            writer = Writer(job, out, student.about, segments, overlay, probabilities)
            writer.add(*result)
            journal.add(job, writer.finish(), 1, writer.foreground)
            tally.done, tally.pictures = tally.done + 1, tally.pictures + 1
            advance(len(tally.failed) + tally.done)
        for job in (job for job in waiting if job.kind != "picture"):
            writer = Writer(job, out, student.about, segments, overlay, probabilities)
            try:
                count = _whole(student, job, writer, journal, said)
                tally.done, tally.pictures = tally.done + 1, tally.pictures + count
            except UserError as error:
                writer.discard()
                tally.failed.append(_why(error))
            advance(len(tally.failed) + tally.done)
    if not tally.failed:  # of one that failed what could not be deleted may lie there
        journal.end()
    return tally


def _why(error: UserError) -> str:
    return "; ".join(filter(None, (error.problem, error.remedy)))


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{out}: no folder for the outputs could be made: {error.strerror or error}",
            "name another folder for --out",
        ) from error


def _each(student: Student, jobs: Sequence[Job], tally: Tally, said: Said) -> Iterator[tuple[Job, tuple]]:
    """Single pictures, read ahead by a thread while the network works, and seen several at a time."""

    def read(job: Job) -> Raw | UserError:
        try:
            return next(iter(pictures_of(job)))
        except UserError as error:
            return error

    size = student.batch
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(read, job) for job in jobs[: size * _AHEAD]]
        rest = iter(jobs[len(coming) :])
        batch: list[tuple[Job, Raw]] = []
        for job in jobs:
            found = coming.pop(0).result()
            if (following := next(rest, None)) is not None:
                coming.append(reader.submit(read, following))
            if isinstance(found, UserError):
                tally.failed.append(_why(found))
            else:
                batch.append((job, found))
            if len(batch) == size:
                yield from _seen(student, batch, said)
                batch = []
        yield from _seen(student, batch, said)


def _seen(student: Student, batch: list[tuple[Job, Raw]], said: Said) -> Iterator[tuple[Job, tuple]]:
    predictions = student.predict_each([raw for _, raw in batch], [said(job, 0) for job, _ in batch])
    for (job, raw), prediction in zip(batch, predictions, strict=True):
        yield job, (raw, prediction)


def _whole(student: Student, job: Job, writer: Writer, journal: _Journal, said: Said) -> int:
    held: list[Raw] = []

    def remembered() -> Iterator[Raw]:
        for raw in pictures_of(job):
            held.append(raw)
            yield raw

    count = 0
    for prediction in student.predict_each(remembered(), (said(job, index) for index in itertools.count())):
        writer.add(held.pop(0), prediction)
        count += 1
    journal.add(job, writer.finish(), count, writer.foreground)
    return count


class _Journal:
    """Which jobs are done, in the folder of the outputs."""

    def __init__(self, out: Path, student: Student, options: dict[str, Any], said: Said):
        self._path, self._out, self._said = out / JOURNAL, out, said
        about = student.about.model_dump_json() + json.dumps(options, sort_keys=True)
        self._key = hashlib.sha256(about.encode()).hexdigest()
        self._done = {line["name"]: line for line in _lines(self._path)}
        self._owner = {name: line["name"] for line in self._done.values() for name in line.get("written", ())}
        self._begun = _names(out / BEGUN) | _torn(self._path)

    def objection(self, jobs: Sequence[Job]) -> Callable[[Job, str], str | None]:
        """What stands against writing over a file that is there (`check_free`)."""
        present = {file.resolve() for job in jobs for file in job.files}

        def against(job: Job, name: str) -> str | None:
            if (owner := self._owner.get(name)) is None:
                return None if job.name in self._begun else "it is there already, and no earlier prediction wrote it"
            before = [Path(path) for path, *_ in self._done[owner].get("sources", ())]
            # a source that is gone was moved or renamed
            if any(file.resolve() in present for file in before) or not any(file.is_file() for file in before):
                return None
            return f"it was predicted of {before[0]}"

        return against

    def begin(self, jobs: Sequence[Job]) -> None:
        """Note whose outputs will be written: a run that is cut off between a mask and its line is gone on with."""
        if jobs:
            write_json(self._out / BEGUN, sorted(self._begun | {job.name for job in jobs}))

    def end(self) -> None:
        """All is done, and has its line."""
        with suppress(OSError):
            if self._path.is_file():
                with self._path.open("rb") as file:
                    os.fsync(file.fileno())
            (self._out / BEGUN).unlink()

    def has(self, job: Job) -> bool:
        line = self._done.get(job.name)
        if line is None or line.get("by") != self._key or line.get("sources") != job.stamp:
            return False
        if line.get("said", "") != self._told_of(job, int(line.get("pictures", 1))):
            return False
        return all((self._out / name).is_file() for name in line.get("written", ()))

    def add(self, job: Job, written: list[str], pictures: int, foreground: int) -> None:
        self._clear(job, written)
        line = {
            "name": job.name,
            "sources": job.stamp,
            "part": job.part,
            "written": written,
            "pictures": pictures,
            "foreground_pixels": foreground,
            "by": self._key,
            **({"said": told} if (told := self._told_of(job, pictures)) else {}),
        }
        try:
            with self._path.open("a+b") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - 1))
                # a line that a crash cut off would take this one with it
                torn = file.read(1) not in (b"", b"\n")
                file.write(b"\n" * torn + json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise UserError(
                f"{self._path}: could not be written: {error.strerror or error}", "free disk space, then start again"
            ) from error

    def _clear(self, job: Job, written: list[str]) -> None:
        """Delete what an earlier model or other options had written of the job, and is not written now: an overlay of
        other masks would lie beside these."""
        before = {*self._done.get(job.name, {}).get("written", ())}
        self._owner.update(dict.fromkeys(written, job.name))
        for name in before - {*written}:
            inside = (self._out / name).resolve().is_relative_to(self._out.resolve())
            # what was this job's may be another's by now
            if inside and self._owner.get(name) == job.name:
                with suppress(OSError):
                    (self._out / name).unlink()

    def _told_of(self, job: Job, pictures: int) -> str:
        """Names the sentences of a job, which the journal does not hold; empty: none."""
        sentences = [self._said(job, index) for index in range(pictures)]
        return hashlib.sha256("\x1f".join(sentences).encode()).hexdigest() if any(sentences) else ""


def _nothing(job: Job, index: int) -> str:
    return ""


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # cut off by a crash
            continue
        if isinstance(line, dict) and isinstance(line.get("name"), str):
            yield line


def _torn(path: Path) -> set[str]:
    """The names in lines that a crash cut off behind them."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return {json.loads(name) for name in _TORN.findall(text)}


def _names(path: Path) -> set[str]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return set()
    return {name for name in found if isinstance(name, str)} if isinstance(found, list) else set()


@contextmanager
def _progress(total: int, skipped: int) -> Iterator:
    """A bar on a terminal; elsewhere a line every ten seconds."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("predicting", total=total, completed=skipped)
            yield lambda done: bar.update(task, completed=skipped + done)
        return
    last = time.monotonic()

    def tell(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            print(f"predicting: {skipped + done} of {total}", file=sys.stderr, flush=True)
            last = time.monotonic()

    yield tell


def told(tally: Tally, out: Path) -> str:
    """What became of the jobs, in a line; and what failed.

    Raises:
        UserError: something could not be predicted; the rest is written.
    """
    skipped = f", {tally.skipped} were done before" if tally.skipped else ""
    line = f"{out}: {tally.pictures} pictures of {tally.done} files or series predicted{skipped}"
    if tally.failed:
        more = [f"  and {len(tally.failed) - _MOST_TOLD} more"] if len(tally.failed) > _MOST_TOLD else []
        listed = "\n".join([*(f"  {text}" for text in tally.failed[:_MOST_TOLD]), *more])
        raise UserError(
            f"{len(tally.failed)} could not be predicted:\n{listed}\n{line}",
            "mend these, then start again: the rest is kept",
        )
    return line
