"""Where jobs write: over none of their sources, over nobody else's files, and no two of them to one place."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from dusss_core.errors import UserError
from dusss_core.predicting.inputs import Job, pages_of

_NUMBERED = re.compile(r"(?P<name>.*)_(?P<number>\d{4,})(?P<tail>(_overlay|_probability(_\d+)?)?\.png)", re.ASCII)
Owners = dict[tuple[Path, str, str], Job]
"""By folder and name; of numbered outputs by what stands before the number, and what behind it."""


def tails_of(job: Job, classes: int, overlay: bool, probabilities: bool) -> list[str]:
    """What follows a job's name in the names of all that may be written of it; `#` stands for `_` and the number of a
    picture."""
    shown = ["_overlay.png"] if overlay else []
    if job.kind in ("picture", "pages"):
        maps = ["_probability.png"] if classes == 1 else [f"_probability_{index}.png" for index in range(classes + 1)]
        tails = [".png", *shown, *(maps if probabilities else [])]
        return tails if job.kind == "picture" else [f"#{tail}" for tail in tails]
    whole = [".nii.gz", "_probabilities.nii.gz"] if job.kind == "volume" else ["_seg.dcm", "_probabilities_seg.dcm"]
    return [*whole[: 1 + probabilities], *(f"#{tail}" for tail in shown)]


def check_targets(jobs: Sequence[Job], out: Path, classes: int, overlay: bool, probabilities: bool) -> Owners:
    """Look where jobs will write, before anything is written.

    Returns:
        Whose each place is.

    Raises:
        UserError: over a source of one of them, or where another one writes.
    """
    resolved = cache(Path.resolve)
    owners: Owners = {}
    shared: list[tuple[Path, Job, Job]] = []
    for job in jobs:
        target = out / job.name
        for tail in tails_of(job, classes, overlay, probabilities):
            sides = (f"{target.name}#", tail[1:]) if tail.startswith("#") else (f"{target.name}{tail}", "")
            if (other := owners.setdefault((resolved(target.parent), *sides), job)) is not job:
                shared.append((target.parent / "".join(sides), other, job))
    for file in (file for job in jobs for file in job.files):
        # a link and what it leads to: neither may be lost
        for place in (resolved(file.parent) / file.name, file.resolve()):
            if job := owners.get((place.parent, place.name, "")) or _numbered(place, owners):
                raise UserError(
                    f"{file}: what is predicted of {job.files[0]} would be written over it",
                    "name another folder for --out",
                )
    for (folder, name, tail), job in owners.items():
        if not tail and (other := _numbered(folder / name, owners)):
            shared.append((folder / name, other, job))
    if shared:
        target, one, other = shared[0]
        raise UserError(
            f"{target}: it would be written of both {one.files[0]} and {other.files[0]}",
            "predict them one after the other, each into its own --out",
        )
    return owners


def check_free(owners: Owners, whose: Callable[[Job, str], str | None]) -> None:
    """Look what lies where jobs will write, before anything is written.

    Args:
        whose: what stands against writing a job's output of this name, below the output folder, over what is there;
            None: it is the job's own.

    Raises:
        UserError: a file that is not what an earlier prediction has written of the same source.
    """
    for folder in sorted({folder for folder, _, _ in owners}):
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not (job := owners.get((folder, file.name, "")) or _numbered(file, owners)):
                continue
            if reason := whose(job, (Path(job.name).parent / file.name).as_posix()):
                raise UserError(
                    f"{file}: {reason}; what is predicted of {job.files[0]} would be written over it",
                    "name another folder for --out, or move that file away",
                )


def _numbered(place: Path, owners: Owners) -> Job | None:
    """Whose page or slice is written to a place."""
    found = _NUMBERED.fullmatch(place.name)
    if found is None or f"{int(found['number']):04d}" != found["number"]:
        return None
    job = owners.get((place.parent, f"{found['name']}#", found["tail"]))
    if job is None or (job.kind == "pages" and int(found["number"]) >= pages_of(job.files[0])):
        return None
    return job
