"""python -m dusss_core fit: statistics of a hospital's own pictures, kept only where they help."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from dusss_core.errors import UserError
from dusss_core.files import check_replaceable
from dusss_core.predicting.evaluate import scores_of
from dusss_core.predicting.inputs import find_jobs, pictures_of
from dusss_core.student.file import read_student
from dusss_core.student.student import Student

MOST_PICTURES = 64
"""That are looked at, spread over all files and slices: each layer averages over all their pixels."""
Item = TypeVar("Item")


def fit(student: Student, paths: Sequence[Path | str], out: Path, check: Path | None = None) -> str:
    """Write a student with statistics of the pictures in `paths` to `out`.

    Args:
        check: a manifest of pictures with masks: the student stays as it is if it is better there.

    Returns:
        What was done, for people.

    Raises:
        UserError: fewer than two pictures, one that cannot be read, or `out` is the student's own file or any other
            that no fit has written.
    """
    _check_out(student, out)
    jobs = _spread(find_jobs(paths, out.parent / f".{out.name}"), MOST_PICTURES)
    each = -(-MOST_PICTURES // len(jobs))
    pictures = _spread([raw for job in jobs for raw in _spread(list(pictures_of(job)), each)], MOST_PICTURES)
    fitted, told = student.fit(pictures), ""
    if check is not None:
        before = scores_of(student, check)["dice"].mean() if student.about.layers != "unfitted" else None
        after = scores_of(fitted, check)["dice"].mean()
        told = f"; Dice {after:.3f} on the pictures of {check}"
        if before is not None:
            told += f", {before:.3f} before"
            if before > after:
                student.save(out)
                return f"{out}: left as it was, which is better{told}"
    fitted.save(out)
    return f"{out}: fitted to {len(pictures)} pictures{told}"


def _check_out(student: Student, out: Path) -> None:
    if out.exists() and out.resolve() == Path(student.source).resolve():
        raise UserError(f"{out}: the student that is fitted would be written over", "name another file for --out")

    def is_fitted(path: Path) -> bool:
        about, _ = read_student(path)
        # where fitting did harm the file is the student as it was
        return about.layers == "fitted" or about == student.about

    check_replaceable(out, "a fitted student", is_fitted)


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of them, evenly spaced."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(len(items), most)).astype(int))]
