"""The manifest: one row per picture, CSV or Parquet. Checked whole, every mistake named with its row.

Columns: `id` and `image` are required; `mask`, `text`, `split` (train, val or test; train if empty),
`patient` (`subject` is read in its place) and `labelled` (0: the mask may not be trained on) are optional;
any other column is kept. Further sentences of the same picture stand in `text_2`, `text_3` and so on: training
draws one of all of them, each time anew. Paths are relative to the manifest's folder.
"""

from __future__ import annotations

import csv
import difflib
import errno
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dusss_core.errors import UserError
from dusss_core.files import write_text
from dusss_core.readers.reference import parse_reference
from dusss_core.seeds import unit_hash

if TYPE_CHECKING:
    import pyarrow

SPLITS = ("train", "val", "test")
COLUMNS = ("id", "image", "mask", "text", "split", "patient", "labelled")
MOST_LINES = 20
"""Problems that one error message lists."""

MORE_TEXT = re.compile(r"text_([2-9]|[1-9]\d+)")
"""Columns of further sentences."""

_TRUE, _FALSE = {"1", "true", "yes"}, {"0", "false", "no"}


@dataclass(frozen=True)
class Record:
    """One picture."""

    id: str
    """Unique in the site."""
    image: Path
    """The picture, absolute; may name a slice (`ct.nii.gz#z=12`)."""
    mask: Path | None = None
    """Its mask, absolute, or None."""
    text: str = ""
    """Its sentence, or ''."""
    split: str = "train"
    """train, val or test."""
    patient: str = ""
    """All pictures of one patient stay in one split and at one site. '' where not known."""
    labelled: bool = False
    """The mask exists and may be trained on."""
    extra: dict[str, str] = field(default_factory=dict)
    """Other columns."""
    row: int = 0
    """Row in the manifest as a spreadsheet counts: the header is row 1."""
    more_texts: tuple[str, ...] = ()
    """Further sentences of the same picture; training draws one of all, each time anew."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """All its sentences, each once; () where it has none."""
        return tuple(dict.fromkeys(text for text in (self.text, *self.more_texts) if text))

    @property
    def group(self) -> tuple[str, str]:
        """What is never torn apart: the patient, or the picture where no patient is named."""
        return ("patient", self.patient) if self.patient else ("id", self.id)


@dataclass(frozen=True)
class Problem:
    """One mistake in a manifest."""

    row: int
    text: str
    remedy: str
    kind: str = "manifest_row"
    """Name of the kind of mistake."""
    also: tuple[int, ...] = ()
    """Other rows that it is about."""


def read_manifest(path: Path) -> list[Record]:
    """Read and check a manifest.

    Returns:
        Its records, in the file's order.

    Raises:
        UserError: lists every mistake with its row (the first 20 and a count).
    """
    records, problems = scan_manifest(path)
    raise_problems(path, problems)
    return records


def scan_manifest(path: Path) -> tuple[list[Record], list[Problem]]:
    """Read a manifest, with its mistakes beside it.

    Returns:
        Its records, in the file's order, those with a mistake among them; and all mistakes.

    Raises:
        UserError: it cannot be read, lacks a column, or holds no records.
    """
    path = Path(path)
    columns, rows = _read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)
    columns = _known_names(path, columns)
    problems: list[Problem] = []
    folder = path.absolute().parent
    records = [_record(folder, columns, row, cells, problems) for row, cells in rows]
    if not records:
        raise UserError(f"{path}: holds no records", "add a row for each picture")
    problems += _duplicates(records) + _torn_patients(records) + _missing_files(records, folder)
    return records, problems


def raise_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Raise one UserError that lists `problems` by row; nothing if there are none."""
    if not problems:
        return
    problems = sorted(problems, key=lambda problem: problem.row)
    if len(problems) == 1:
        only = problems[0]
        raise UserError(f"{path}, row {only.row}: {only.text}", only.remedy)
    lines = [f"  row {p.row}: {p.text} ({p.remedy})" for p in problems[:MOST_LINES]]
    if len(problems) > MOST_LINES:
        lines.append(f"  and {len(problems) - MOST_LINES} more")
    raise UserError("\n".join([f"{path}: {len(problems)} problems", *lines]), "mend these rows")


def write_manifest(path: Path, records: Iterable[Record]) -> None:
    """Write a CSV manifest atomically.

    Files below the manifest's folder are written relative to it, others with their absolute path.
    """
    records = list(records)
    folder = Path(path).absolute().parent
    extras = list(dict.fromkeys(name for record in records for name in record.extra))
    more = max((len(record.more_texts) for record in records), default=0)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"text_{number + 2}" for number in range(more)), *extras])
    for record in records:
        files = (_portable(record.image, folder), _portable(record.mask, folder) if record.mask else "")
        writer.writerow(
            [
                record.id,
                *files,
                record.text,
                record.split,
                record.patient,
                int(record.labelled),
                *(record.more_texts + ("",) * (more - len(record.more_texts))),
                *(record.extra.get(name, "") for name in extras),
            ]
        )
    write_text(Path(path), out.getvalue())


def labelled_by_fraction(records: Iterable[Record], fraction: float) -> set[str]:
    """The ids of the training records that stay labelled when only `fraction` of the labels is used.

    The first ceil(fraction * n) of the n labelled training records in order of a hash of their id: a smaller
    fraction is a subset of a larger one, and every method and run sees the same.
    """
    candidates = label_order(records)
    return set(candidates[: share_of(fraction, len(candidates))])


def label_order(records: Iterable[Record]) -> list[str]:
    """The ids of the labelled training records, in the order in which their labels are taken."""
    candidates = [record.id for record in records if record.split == "train" and record.labelled]
    return sorted(candidates, key=lambda identity: unit_hash("label", identity))


def share_of(fraction: float, n: int) -> int:
    """ceil(fraction * n), rounded first, since 0.07 * 100 is a little more than 7."""
    return math.ceil(round(fraction * n, 6))


def known_name(column: str) -> str:
    """A column's name: in lower case where the manifest knows it, else as it is."""
    low = column.strip().lower()
    return low if low in (*COLUMNS, "subject") or MORE_TEXT.fullmatch(low) else column.strip()


def patient_key(patient: str) -> str:
    """The same for keys that differ in case or in the width of blanks alone: they are one patient's."""
    return " ".join(patient.casefold().split())


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "check the path of the manifest") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, row {line}: not UTF-8 text", "save it as 'CSV UTF-8'") from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # it says nothing of this file
        raise UserError(
            f"{path}: could not be read: {error.strerror or error}", "check the path and the permissions"
        ) from None
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file: {error}", "check the quotes") from None
    if not lines:
        raise UserError(f"{path}: empty", "add a header with the columns id and image, and a row for each picture")
    header = lines[0]
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise UserError(f"{path}, row 1: columns are not separated by commas", "save it with commas as separators")
    return header, [(row, cells) for row, cells in enumerate(lines[1:], start=2) if any(c.strip() for c in cells)]


def _read_parquet(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "check the path of the manifest") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file: {error}", "write it again") from None
    values = [_listed(path, name, column) for name, column in zip(table.column_names, table.columns, strict=True)]
    return table.column_names, [
        (row, [_as_text(v) for v in cells]) for row, cells in enumerate(zip(*values, strict=True), start=2)
    ]


def _listed(path: Path, name: str, column: pyarrow.ChunkedArray) -> list[object]:
    """A column's values. Its text is not looked at when it is read, and may be anything."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        row = next(row for row, cell in enumerate(column, start=2) if not _is_text(cell))
        raise UserError(
            f"{path}, row {row}: column {name!r} is not UTF-8 text", "write the file again with UTF-8 strings"
        ) from None


def _is_text(cell: pyarrow.Scalar) -> bool:
    try:
        cell.as_py()
    except UnicodeDecodeError:
        return False
    return True


def _as_text(value: object) -> str:
    """The text that the same value has in a CSV file."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    # whole numbers with gaps are stored as floating point
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _known_names(path: Path, columns: list[str]) -> list[str]:
    """Column names without case and blanks where we know them; errors for missing and repeated ones."""
    names = [name.strip() for name in columns]
    names = [known_name(name) for name in names]
    if "patient" not in names:
        names = ["patient" if name == "subject" else name for name in names]
    for name in names:
        if name and names.count(name) > 1:
            raise UserError(
                f"{path}, row 1: column '{name}' stands there {names.count(name)} times", "rename one of them"
            )
    for required in ("id", "image"):
        if required not in names:
            near = difflib.get_close_matches(required, [n for n in names if n not in COLUMNS], n=1, cutoff=0.5)
            hint = f"rename column '{near[0]}' to '{required}'" if near else f"add it; the file has: {', '.join(names)}"
            raise UserError(f"{path}, row 1: no column '{required}'", hint)
    return names


def _record(folder: Path, columns: list[str], row: int, cells: list[str], problems: list[Problem]) -> Record:
    def problem(text: str, remedy: str) -> None:
        problems.append(Problem(row, text, remedy))

    if len(cells) != len(columns):
        problem(f"{len(cells)} cells under {len(columns)} columns", "put cells with commas in quotes")
    values = {name: cell.strip() for name, cell in zip(columns, cells, strict=False)}
    if not values.get("id"):
        problem("empty id", "give every record its own id")
    if not values.get("image"):
        problem("empty image", "name the picture's file, or drop the row")
    for name in ("image", "mask"):
        if values.get(name) and folder / values[name] == folder:
            problem(f"{name} '{values[name]}' is a folder", "name a file, relative to the manifest's folder")
    split = values.get("split", "").lower() or "train"
    if split not in SPLITS:
        near = difflib.get_close_matches(split, SPLITS, n=1, cutoff=0.4)
        problem(
            f"unknown split '{values['split']}'",
            f"did you mean '{near[0]}'?" if near else "use train, val or test",
        )
    flag, mask = values.get("labelled", "").lower(), values.get("mask", "")
    if flag and flag not in _TRUE | _FALSE:
        problem(f"labelled is '{values['labelled']}'", "use 1 or 0")
    if flag in _TRUE and not mask:
        problem("labelled is 1, but there is no mask", "name the mask's file, or set labelled to 0")
    texts = sentences_of(values)
    return Record(
        id=values.get("id", ""),
        image=folder / values.get("image", ""),
        mask=folder / mask if mask else None,
        text=texts[0] if texts else "",
        more_texts=texts[1:],
        split=split,
        patient=values.get("patient", ""),
        labelled=bool(mask) and flag not in _FALSE,
        extra={
            name: value
            for name, value in values.items()
            if name and name not in COLUMNS and not MORE_TEXT.fullmatch(name)
        },
        row=row,
    )


def sentences_of(values: Mapping[str, str]) -> tuple[str, ...]:
    """What stands in text, text_2, ..., in that order, without what is empty or there already."""
    numbered = sorted((int(match[1]), name) for name in values if (match := MORE_TEXT.fullmatch(name)))
    cells = (values.get(name, "") for name in ("text", *(name for _, name in numbered)))
    return tuple(dict.fromkeys(text for cell in cells if (text := " ".join(cell.split()))))


def _duplicates(records: list[Record]) -> list[Problem]:
    """Ids that stand there twice; in case alone they may not differ either, since files are named for them."""
    first: dict[str, Record] = {}
    problems = []
    for record in records:
        other = first.setdefault(record.id.casefold(), record)
        if record.id and other is not record:
            place = f"is already in row {other.row}"
            if record.id != other.id:
                place = f"differs from '{other.id}' in row {other.row} in case alone"
            remedy = "give every record its own id"
            problems.append(Problem(record.row, f"id '{record.id}' {place}", remedy, "id_twice", (other.row,)))
    return problems


def _torn_patients(records: list[Record]) -> list[Problem]:
    """Patients in two splits."""
    first: dict[str, Record] = {}
    problems = []
    for record in records:
        if not record.patient or record.split not in SPLITS:  # the latter is reported already
            continue
        other = first.setdefault(patient_key(record.patient), record)
        if record.split != other.split:
            there, remedy = "", "put all pictures of a patient into one split"
            if record.patient != other.patient:
                there = f"as '{other.patient}', which differs in case or blanks alone, "
                remedy += "; give two patients keys that differ in more"
            text = f"patient '{record.patient}' is in {record.split}, {there}in row {other.row} in {other.split}"
            problems.append(Problem(record.row, text, remedy, "torn_patient", (other.row,)))
    return problems


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system takes
        return False


def _missing_files(records: list[Record], folder: Path) -> list[Problem]:
    problems = []
    for record in records:
        for kind, path in (("image", record.image), ("mask", record.mask)):
            # an empty image cell points at the folder itself, and is reported already
            if path is not None and path != folder and not _is_file(parse_reference(path).file):
                problems.append(
                    Problem(
                        record.row,
                        f"{kind} file not found: {path}",
                        "paths are relative to the manifest's folder",
                        "file_missing",
                    )
                )
    return problems


def _portable(path: Path, folder: Path) -> str:
    path = Path(path).absolute()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
