"""A sheet of sentences, CSV or xlsx: a row for each picture, with the column names that `python -m sites import` takes.

The first of `image`, `id`, `file`, `filename`, `name`, `slide` names the picture, by its file's name with or without
folder and suffix (of a volume, a TIFF with pages or a DICOM file with frames also `NAME#12`, one of its pictures); the
first of `description`, `text`, `report`, `caption`, `sentence`, `findings`, `impression` is its sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dusss_core.errors import UserError
from dusss_core.manifest import Problem, raise_problems
from dusss_core.predicting.inputs import Job, count_of
from dusss_core.readers import parse_reference
from dusss_core.sheets import KEY_COLUMNS, TEXT_COLUMNS, name_key, read_table


@dataclass(frozen=True)
class Line:
    """A row of the sheet."""

    row: int
    """As a spreadsheet counts: the header is row 1."""
    name: str
    """Of the picture, as it stands there."""
    sentence: str


def read_sheet(sheet: Path) -> dict[str, Line]:
    """The rows of a sheet by the key of the picture that they name.

    Raises:
        UserError: not a table, a column is missing, or a picture is named twice with different sentences.
    """
    rows = read_table(sheet)
    header = [cell.strip().lower() for cell in next(rows, [])]
    picture, sentence = (_column(sheet, header, names) for names in (KEY_COLUMNS, TEXT_COLUMNS))
    lines: dict[str, Line] = {}
    problems = []
    for number, cells in enumerate(rows, start=2):
        name, text = (" ".join(cells[i].split()) if i < len(cells) else "" for i in (picture, sentence))
        if not name and not text:
            continue
        if not name:
            problems.append(Problem(number, "a sentence without a picture", f"name it in column {header[picture]}"))
            continue
        line = lines.setdefault(_key(name), Line(number, name, text))
        if line.sentence != text:
            problems.append(
                Problem(number, f"'{name}' is named in row {line.row} too, with another sentence", "keep one of them")
            )
    raise_problems(sheet, problems)
    if not lines:
        raise UserError(f"{sheet}: no row names a picture", "add a row for each picture")
    return lines


def sentences_for(sheet: Path, jobs: Sequence[Job], partial: bool = False) -> Callable[[Job, int], str]:
    """What is said of the pictures of jobs.

    Args:
        partial: rows of other pictures are passed over, and pictures without a sentence are seen alone.

    Returns:
        The sentence of a job's picture by its number in the job, '' where there is none.

    Raises:
        UserError: as `read_sheet`; and unless `partial`, listed by row: a row that names no picture or has no sentence,
            a picture without a row.
    """
    lines = read_sheet(sheet)
    keys = [key for job in jobs for key in _keys_of_files(job)]
    twice = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
    if twice:
        raise UserError(
            f"{sheet}: several pictures are called '{twice[0]}', and a row could mean either",
            "predict their folders one after the other, each with its own sheet",
        )
    if not partial:
        _check_all(sheet, lines, jobs)

    def sentence(job: Job, index: int) -> str:
        found = [lines[key].sentence for key in _keys_of_picture(job, index) if key in lines]
        return found[0] if found else ""

    return sentence


def _check_all(sheet: Path, lines: dict[str, Line], jobs: Sequence[Job]) -> None:
    there = {key for job in jobs for key in _keys_of_files(job)}
    within = _within_files(lines, jobs)
    remedy = "or let such rows and pictures be, with --partial"
    problems = [
        Problem(
            line.row,
            f"'{line.name}' is none of the pictures",
            f"correct its name{', counted from 0' * ('#' in key)}, add the picture, {remedy}",
        )
        for key, line in lines.items()
        if key not in there and not _is_within(key, within)
    ]
    problems += [
        Problem(line.row, f"'{line.name}' has no sentence", f"write it, {remedy}")
        for line in lines.values()
        if not line.sentence
    ]
    # the row of a whole file is of each of its pictures
    wanted = [key for file in sorted(there - lines.keys()) for key in within.get(file, [file]) or ()]
    without = [key for key in wanted if key not in lines]
    if without and not problems:
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        raise UserError(
            f"{sheet}: no row for {len(without)} of the pictures: {', '.join(without[:3])}{more}",
            f"add a row for each, {remedy}",
        )
    raise_problems(sheet, problems)


def _within_files(lines: dict[str, Line], jobs: Sequence[Job]) -> dict[str, list[str] | None]:
    """The names of a file's pictures, of each file of which a row names one; None: they cannot be counted."""
    addressed = {key.partition("#")[0] for key in lines if "#" in key}
    found: dict[str, list[str] | None] = {}
    for job in jobs:
        for file in _keys_of_files(job):
            if file in addressed and len(job.files) == 1:
                count = count_of(job)
                found[file] = None if count is None else [_keys_of_picture(job, i)[0] for i in range(count)]
    return found


def _is_within(key: str, within: dict[str, list[str] | None]) -> bool:
    pictures = within.get(key.partition("#")[0], [])
    return pictures is None or key in pictures


def _keys_of_files(job: Job) -> list[str]:
    """Of a job's files, or of the one picture in a file that it is."""
    if job.part:
        return [_key(f"{job.files[0].name}#{job.part}")]
    return [_key(file.name) for file in job.files]


def _keys_of_picture(job: Job, index: int) -> list[str]:
    """The names under which one picture's sentence may stand, the most precise first."""
    if job.part:
        return _keys_of_files(job)
    if job.kind == "series" and len(job.files) > 1:
        return [_key(job.files[index].name)]
    name = job.files[0].name
    return [_key(f"{name}#{index}"), _key(name)]


def _key(name: str) -> str:
    reference = parse_reference(name)
    if reference.index is None:
        return name_key(name)
    axis = "" if reference.axis == "z" else f"{reference.axis}="
    return f"{name_key(str(reference.file))}#{axis}{reference.index}"


def _column(sheet: Path, header: Sequence[str], names: Sequence[str]) -> int:
    found = [header.index(name) for name in names if name in header]
    if not found:
        what = "that names the pictures" if names is KEY_COLUMNS else "of sentences"
        raise UserError(
            f"{sheet}, row 1: no column {what}; it has: {', '.join(filter(None, header)) or 'nothing'}",
            f"name one of its columns {', '.join(names)}",
        )
    return found[0]
