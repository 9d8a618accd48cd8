"""python -m dusss_core fit: statistics of a hospital's own pictures, kept only where they help."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from dusss_core.predicting.evaluate import scores_of
from dusss_core.predicting.inputs import find_jobs, pictures_of
from dusss_core.student.student import Student

MOST_PICTURES = 64
"""That are looked at: each layer averages over all their pixels."""


def fit(student: Student, paths: Sequence[Path | str], out: Path, check: Path | None = None) -> str:
    """Write a student with statistics of the pictures in `paths` to `out`.

    Args:
        check: a manifest of pictures with masks: the student stays as it is if it is better there.

    Returns:
        What was done, for people.

    Raises:
        UserError: fewer than two pictures, or one that cannot be read.
    """
    jobs = find_jobs(paths, out.parent / f".{out.name}")
    step = max(1, len(jobs) // MOST_PICTURES)
    pictures = list(islice((raw for job in jobs[::step] for raw in pictures_of(job)), MOST_PICTURES))
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
