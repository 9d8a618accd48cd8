"""Tables of sentences, CSV or xlsx, as people keep them beside their pictures."""

from __future__ import annotations

import csv
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
        UserError: missing, or not a table; a column's name that stands there twice, a CSV file with quotes that do not
            close or with cells beyond its columns: something of it would be lost.
    """
    rows = _rows(table)
    header = next(rows, None)
    if header is None:
        return
    _refuse_repeated(table, header)
    yield header
    is_csv = table.suffix.lower() != ".xlsx"
    for number, row in enumerate(rows, start=2):
        if is_csv and any(cell.strip() for cell in row[len(header) :]):
            raise UserError(
                f"{table}, row {number}: {len(row)} cells under {len(header)} columns",
                "put cells with commas in quotes",
            )
        yield row


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
            import openpyxl

            book = openpyxl.load_workbook(table, read_only=True, data_only=True)
            try:
                for row in book.active.iter_rows(values_only=True):
                    yield ["" if cell is None else str(cell) for cell in row]
            finally:
                book.close()
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


def _strictly(table: Path, rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """A quote that is not closed would swallow all rows below it."""
    row = 1
    try:
        for cells in rows:
            row += 1
            yield cells
    except csv.Error as error:
        raise UserError(f"{table}, row {row}: not a CSV file: {error}", "check the quotes") from None
