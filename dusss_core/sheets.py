"""Tables of sentences, CSV or xlsx, as people keep them beside their pictures."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path

from dusss_core.errors import UserError
from dusss_core.readers import READERS

SUFFIXES = tuple(sorted(READERS, key=len, reverse=True))
TEXT_COLUMNS = ("description", "text", "report", "caption", "sentence", "findings", "impression")
"""Which column has the sentences: the first of these that is there."""
KEY_COLUMNS = ("image", "id", "file", "filename", "name", "slide")
"""Which column names the picture: the first of these that is there."""


def name_key(name: str) -> str:
    """What a picture, its mask and its text share: the name without folder, suffix, `mask_` and case."""
    key = Path(name.strip().replace("\\", "/")).name.lower()
    while key.endswith(SUFFIXES):
        key = key[: -len(next(suffix for suffix in SUFFIXES if key.endswith(suffix)))]
    return key.removeprefix("mask_")


def read_table(table: Path) -> Iterator[list[str]]:
    """The rows of a CSV (with commas, semicolons or tabs) or xlsx file, the first names the columns.

    Raises:
        UserError: missing, or not a table; a column's name that stands there twice, cells beyond the last column that
            has a name, quotes of a CSV file that do not close, or of an xlsx file what `_cells` refuses: something of
            it would be lost.
    """
    rows = _rows(table)
    header = next(rows, None)
    if header is None:
        return
    _refuse_repeated(table, header)
    yield header
    columns = _named(header)
    is_csv = table.suffix.lower() != ".xlsx"
    for number, row in enumerate(rows, start=2):
        if any(cell.strip() for cell in row[columns:]):
            used = max(i for i, cell in enumerate(row, start=1) if cell.strip())
            raise UserError(
                f"{table}, row {number}: {used} cells under {columns} columns",
                "put cells with commas in quotes" if is_csv else "name their column in row 1, or empty them",
            )
        yield row


def _named(header: list[str]) -> int:
    """Columns up to the last one with a name."""
    return max((i for i, name in enumerate(header, start=1) if name.strip()), default=0)


def _refuse_repeated(table: Path, header: list[str]) -> None:
    names = [name.strip().lower() for name in header]
    for name in names:
        if name and names.count(name) > 1:
            raise UserError(
                f"{table}, row 1: column '{name}' stands there {names.count(name)} times", "rename one of them"
            )


def _rows(table: Path) -> Iterator[list[str]]:
    try:
        if table.suffix.lower() == ".xlsx":
            yield from _cells(table)
        else:
            with table.open(encoding="utf-8-sig", newline="") as file:
                first = file.readline()
                file.seek(0)
                # a spreadsheet in a language with a decimal comma writes semicolons
                yield from _strictly(table, csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True))
    except FileNotFoundError:
        raise UserError(f"{table}: no such file", "check the path") from None
    except UserError:
        raise
    except Exception as error:  # zip, XML and encoding errors alike
        raise UserError(f"{table}: could not be read: {error}", "save it again as xlsx or as CSV UTF-8") from error


def _cells(table: Path) -> Iterator[list[str]]:
    """The rows of an xlsx file's active sheet, as its program showed them last.

    Raises:
        UserError: a formula whose value is not in the file or is an error, cells that are merged (all but the first are
            empty, whatever is seen), another sheet with the same columns.
    """
    import openpyxl

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # styles and drop-down lists that are not kept
        book, formulas = (openpyxl.load_workbook(table, data_only=values) for values in (True, False))
    sheet = book.active
    header = _header(sheet)
    columns = _named(header)
    _refuse_other_sheets(table, book, header)
    for merged in sheet.merged_cells.ranges:
        if merged.max_row > 1 and merged.min_col <= columns:
            raise UserError(
                f"{table}, row {max(merged.min_row, 2)}: the cells {merged.coord} are merged, and all but the first "
                "are empty",
                "unmerge them, and fill each of them",
            )
    for row, before in zip(sheet.iter_rows(), formulas[sheet.title].iter_rows(), strict=False):
        for cell, formula in zip(row[:columns], before, strict=False):
            if cell.data_type == "e" or (formula.data_type == "f" and cell.value is None):
                found = cell.value if cell.data_type == "e" else "a formula whose value is not in the file"
                raise UserError(
                    f"{table}, row {cell.row}: cell {cell.coordinate} is {found}",
                    "put the value itself there; a spreadsheet program that opens and saves the file computes formulas",
                )
        yield [_as_text(cell.value) for cell in row]


def _refuse_other_sheets(table: Path, book, header: list[str]) -> None:
    """One sheet alone is read: rows that stand in another one would be missing."""
    names = {name.strip().lower() for name in header} - {""}
    alike = [
        sheet.title for sheet in book.worksheets if {name.strip().lower() for name in _header(sheet)} - {""} == names
    ]
    if len(alike) > 1:
        raise UserError(
            f"{table}: sheets with the same columns, of which one alone would be read: {', '.join(alike)}",
            "put all rows into one sheet, or save each as a file of its own",
        )


def _header(sheet) -> list[str]:
    return [_as_text(cell.value) for row in sheet.iter_rows(max_row=1) for cell in row]


def _as_text(value: object) -> str:
    return "" if value is None else str(value)


def _strictly(table: Path, rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """A quote that is not closed would swallow all rows below it."""
    row = 1
    try:
        for cells in rows:
            row += 1
            yield cells
    except csv.Error as error:
        raise UserError(f"{table}, row {row}: not a CSV file: {error}", "check the quotes") from None
