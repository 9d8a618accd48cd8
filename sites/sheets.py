"""Sheets that tell of pictures: their sentences and further columns, by the picture that a row names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from dusss_core.errors import UserError
from dusss_core.manifest import COLUMNS, MORE_TEXT, SPLITS, Problem, known_name, raise_problems
from dusss_core.sheets import KEY_COLUMNS, TEXT_COLUMNS, name_key, read_table

_YES = ("1", "true", "yes", "1.0")
NO = ("0", "false", "no", "0.0")
"""What may stand under labelled: the manifest's own words, and what a spreadsheet makes of its numbers."""


def read_sheet(
    table: Path, key_column: str | None, warnings: list[str], text_column: str | None, *, may_lack: bool
) -> dict[str, dict[str, str]]:
    """A table of sentences, by picture; the user hears if there is no column of them, or more in it than is kept.

    Args:
        may_lack: a column that is named may be of another sheet.
    """
    cells = rows_by_picture(table, key_column, warnings, text_column, key_may_lack=may_lack, text_may_lack=may_lack)
    columns = list(next(iter(cells.values()), {}))
    if columns and not any(map(is_text, columns)):
        wordy = [name for name in columns if _is_wordy(cells, name)]
        warnings.append(
            f"{table}: no column of sentences, so all are left out; it has: {', '.join(columns)}; accepted: "
            f"{', '.join(TEXT_COLUMNS)}; name another with --text {wordy[0] if wordy else 'COLUMN'}"
        )
    lost = [name for name in ("id", "image") if name in columns]
    if lost:
        warnings.append(f"{table}: not kept, since a record's id is its picture's name: column {' and '.join(lost)}")
    return cells


def _is_wordy(cells: Mapping[str, Mapping[str, str]], column: str) -> bool:
    """Whether most cells of a column have three words or more."""
    values = [row.get(column, "") for row in cells.values()]
    return 2 * sum(len(value.split()) >= 3 for value in values) > len(values)


def rows_by_picture(
    table: Path,
    key_column: str | None,
    warnings: list[str],
    text_column: str | None = None,
    *,
    key_may_lack: bool = False,
    text_may_lack: bool = False,
) -> dict[str, dict[str, str]]:
    """The rows of a table by the picture they name; the text's column becomes `text`, known ones lower
    case. A named column that may lack and does is looked for as if it were not named."""
    rows = read_table(table)
    header = next(rows, None)
    if header is None:
        raise UserError(f"{table}: empty", "its first row names the columns")
    names = [name.strip() for name in header]
    lower = [name.lower() for name in names]
    if key_column and key_may_lack and key_column.lower() not in lower:
        key_column = None
    if text_column and text_may_lack and text_column.lower() not in lower:
        text_column = None
    wanted = [key_column.lower()] if key_column else [name for name in KEY_COLUMNS if name in lower][:1]
    if not wanted or wanted[0] not in lower:
        raise UserError(
            f"{table}, row 1: no column {f'{key_column!r}' if key_column else 'that names the pictures'}",
            f"name it with --key; the file has: {', '.join(names)}",
        )
    position = lower.index(wanted[0])
    if text_column and text_column.lower() not in lower:
        raise UserError(f"{table}, row 1: no column '{text_column}'", f"--text is one of: {', '.join(names)}")
    text = text_column.lower() if text_column else next((name for name in TEXT_COLUMNS if name in lower), None)
    # a column text beside the one that is named is another sentence's
    names = [
        "text" if low == text else f"other_{low}" if low == "text" else known_name(name)
        for name, low in zip(names, lower, strict=True)
    ]
    names = ["patient" if name == "subject" and "patient" not in names else name for name in names]
    found: dict[str, dict[str, str]] = {}
    differ = set()
    problems: list[Problem] = []
    nameless = []
    for number, row in enumerate(rows, start=2):
        if position >= len(row) or not row[position].strip():
            nameless += [str(number)] if any(cell.strip() for cell in row) else []
            continue
        key = name_key(row[position])
        cells = {
            name: " ".join(cell.split())
            for i, (name, cell) in enumerate(zip(names, row, strict=False))
            if name and i != position
        }
        problems += mistakes(number, cells)
        if found.setdefault(key, cells) != cells:
            differ.add(row[position])
    raise_problems(table, problems)
    warn_of(warnings, f"{table}: rows without the name of a picture are left out", nameless)
    warn_of(warnings, f"{table}: named twice with different cells, the first row counts", differ)
    return found


def merge(
    cells: dict[str, dict[str, str]], more: Mapping[str, dict[str, str]], source: Path, warnings: list[str]
) -> None:
    warn_of(warnings, f"{source}: read again, the first row counts", cells.keys() & more.keys())
    for key, values in more.items():
        cells.setdefault(key, values)


def mistakes(row: int, cells: Mapping[str, str]) -> list[Problem]:
    """What the manifest would refuse, or worse, take for something else."""
    found = []
    if cells.get("split", "").lower() not in ("", *SPLITS):
        found.append(Problem(row, f"unknown split '{cells['split']}'", "use train, val or test"))
    if cells.get("labelled", "").lower() not in ("", *_YES, *NO):
        found.append(Problem(row, f"labelled is '{cells['labelled']}'", "use 1 or 0"))
    return found


def is_text(column: str) -> bool:
    return column == "text" or bool(MORE_TEXT.fullmatch(column))


def is_known(column: str) -> bool:
    return column in COLUMNS or is_text(column)


def warn_of(warnings: list[str], what: str, names: Iterable[str]) -> None:
    names = sorted(names)
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        warnings.append(f"{what}: {len(names)} ({shown})")
