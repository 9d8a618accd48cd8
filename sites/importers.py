"""Manifests for data that already lie in a usual folder layout. Pictures are not copied."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dusss_core.errors import UserError
from dusss_core.manifest import COLUMNS, MORE_TEXT, SPLITS, Record, known_name, sentences_of, write_manifest
from dusss_core.readers import Reference
from dusss_core.sheets import KEY_COLUMNS, SUFFIXES, TEXT_COLUMNS, name_key, read_table

LVIT_FOLDERS = {"Train_Folder": "train", "Val_Folder": "val", "Test_Folder": "test"}


@dataclass
class Imported:
    """What an import made."""

    manifest: Path
    records: list[Record]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ImportOptions:
    """What both importers know."""

    out: Path | None = None
    """Manifest to write; manifest.csv in the data's folder if None."""
    columns: Path | None = None
    """CSV or xlsx file with further columns (hospital, patient, ...), joined by the picture's name."""
    key: str | None = None
    """Column that names the picture, there or in the sheet of texts; image, id, file, name or slide if None."""
    text: str | None = None
    """Column of the sentences; text, description, report, caption, sentence, findings or impression if None."""
    extract: Mapping[str, str] = field(default_factory=dict)
    """Column -> regular expression on the picture's name; its first group, or whole match, is the column's
    value."""
    force: bool = False
    """Overwrite an existing manifest."""


def import_lvit(folder: Path, options: ImportOptions = ImportOptions()) -> Imported:
    """Import LViT's layout (QaTa-COV19, MoNuSeg): {Train,Val,Test}_Folder with img, labelcol and *.xlsx.

    Masks and texts are found by the picture's name, by the mask's, with or without `mask_` and any known
    suffix.

    Raises:
        UserError: no such folders, no pictures, two pictures of one name, a manifest that exists.
    """
    target = _target(folder, options)
    found = {name: folder / name for name in LVIT_FOLDERS if (folder / name).is_dir()}
    if not found:
        raise UserError(f"{folder}: none of {', '.join(LVIT_FOLDERS)} is there", "name the folder that holds them")
    result = Imported(target, [])
    for name, place in found.items():
        tables = [p for p in sorted(place.glob("*.xlsx")) + sorted(place.glob("*.csv")) if not p.name.startswith("~$")]
        cells: dict[str, dict[str, str]] = {}
        for table in tables:
            _merge(cells, _sheet(table, options, result.warnings), table, result.warnings)
        _add(result, place / "img", place / "labelcol", LVIT_FOLDERS[name], cells)
    return _finish(result, options)


def import_folder(folder: Path, options: ImportOptions = ImportOptions()) -> Imported:
    """Import images/ and masks/ (same name, or `mask_` + name), with an optional texts.csv or texts.xlsx.

    The same inside train/, val/ and test/, where these are. texts.csv has a column that names the picture,
    one of the sentences (see `ImportOptions.text`; further ones text_2, text_3, ...), and any others (split, patient,
    ...), which are kept. A column mask names the mask where none has the picture's name.

    Raises:
        UserError: as `import_lvit`.
    """
    target = _target(folder, options)
    places = [(folder / split, split) for split in SPLITS if (folder / split / "images").is_dir()]
    if not places and not (folder / "images").is_dir():
        raise UserError(f"{folder}: no folder images, nor train/images", "name the folder that holds images and masks")
    result = Imported(target, [])
    shared = _texts(folder, options, result.warnings)
    for place, split in places or [(folder, "train")]:
        cells = dict(shared)
        if places:
            _merge(cells, _texts(place, options, result.warnings), place, result.warnings)
        _add(result, place / "images", place / "masks", split, cells, report_unused=not places)
    return _finish(result, options)


def _target(folder: Path, options: ImportOptions) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "check the path")
    target = options.out or folder / "manifest.csv"
    if target.exists() and not options.force:
        raise UserError(f"{target}: is there already", "name another file with --out, or overwrite it with --force")
    return target


def _add(
    result: Imported,
    images: Path,
    masks: Path,
    split: str,
    cells: Mapping[str, Mapping[str, str]],
    report_unused: bool = True,
) -> None:
    """Append a record for every picture in `images`."""
    mask_of = {name_key(path.name): path for path in _pictures(masks)}
    seen: dict[str, Path] = {}
    for image in _pictures(images):
        key = name_key(image.name)
        if key in seen:
            raise UserError(f"{image}: has the same name as {seen[key].name}", "give each picture its own name")
        seen[key] = image
        own = dict(cells.get(key, {}))
        named = own.get("mask", "")
        mask = mask_of.get(key) or mask_of.get(name_key(named)) or _named_file(masks.parent, named)
        record_split = own.get("split", "").lower() or split
        if record_split not in SPLITS:
            raise UserError(f"{image.name}: unknown split '{record_split}' in its texts", "use train, val or test")
        result.records.append(
            Record(
                id=_stem(image),
                image=image.absolute(),
                mask=mask.absolute() if mask else None,
                split=record_split,
                patient=own.get("patient", ""),
                labelled=mask is not None and own.get("labelled", "").lower() not in ("0", "no", "false"),
                extra=_extra(own),
                **_texts_of(own),
                row=len(result.records) + 2,
            )
        )
    used = {name_key(cell["mask"]) for cell in cells.values() if cell.get("mask")}
    _warn(result.warnings, f"{masks}: no picture for these masks", mask_of.keys() - seen.keys() - used)
    if report_unused:
        _warn(result.warnings, f"{images}: no picture for these texts", cells.keys() - seen.keys())


def _finish(result: Imported, options: ImportOptions) -> Imported:
    if not result.records:
        raise UserError(f"{result.manifest.parent}: no pictures found", f"pictures end in {', '.join(SUFFIXES)}")
    joined = {}
    if options.columns:
        told = any(record.text for record in result.records)  # then --text was of another sheet
        joined = _by_key(options.columns, options.key, result.warnings, options.text, text_may_lack=told)
    if options.columns and not any(name_key(record.id) in joined for record in result.records):
        raise UserError(f"{options.columns}: no row names one of the pictures", "name its key column with --key")
    records = [_with_cells(record, joined.get(name_key(record.id), {}), options.extract) for record in result.records]
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(record.id, record)
        if other is not record:
            raise UserError(
                f"two pictures are called '{record.id}': {other.image} and {record.image}",
                "rename one, or remove it from one of the splits",
            )
    if options.columns:
        _warn(
            result.warnings,
            f"{options.columns}: no row for these pictures",
            {record.id for record in records if name_key(record.id) not in joined},
        )
    _warn(result.warnings, "pictures without a mask", {record.id for record in records if record.mask is None})
    _warn(result.warnings, "pictures without a text", {record.id for record in records if not record.text})
    write_manifest(result.manifest, records)
    return Imported(result.manifest, records, result.warnings)


def _with_cells(record: Record, cells: Mapping[str, str], extract: Mapping[str, str]) -> Record:
    cells = dict(cells)
    for column, pattern in extract.items():
        try:
            match = re.search(pattern, record.id)
        except re.error as error:
            raise UserError(f"--extract {column}={pattern}: not a regular expression: {error}", "correct it") from None
        cells[column] = (match[1] if match.lastindex else match[0]) if match else ""
    own = {name: cells[name] for name in ("split", "patient") if cells.get(name)}
    texts = _texts_of(cells)
    return replace(record, **own, **(texts if texts["text"] else {}), extra={**record.extra, **_extra(cells)})


def _extra(cells: Mapping[str, str]) -> dict[str, str]:
    """Columns that the manifest does not know. What it knows has its place, and must not stand there twice."""
    return {name: value for name, value in cells.items() if name not in COLUMNS and not MORE_TEXT.fullmatch(name)}


def _texts_of(cells: Mapping[str, str]) -> dict[str, Any]:
    texts = sentences_of(cells)
    return {"text": texts[0] if texts else "", "more_texts": texts[1:]}


def _named_file(folder: Path, name: str) -> Path | None:
    return folder / name if name and (folder / name).is_file() else None


def _texts(folder: Path, options: ImportOptions, warnings: list[str]) -> dict[str, dict[str, str]]:
    for name in ("texts.csv", "texts.xlsx"):
        if (folder / name).is_file():
            return _sheet(folder / name, options, warnings)
    if not options.columns:
        others = {path.name for path in [*folder.glob("*.csv"), *folder.glob("*.xlsx")]} - {"manifest.csv"}
        others = {name for name in others if not name.startswith(("~$", "."))}
        _warn(warnings, f"{folder}: sheets that are not read: name one with --columns, or call it texts.csv", others)
    return {}


def _sheet(table: Path, options: ImportOptions, warnings: list[str]) -> dict[str, dict[str, str]]:
    """A table of sentences, by picture; the user hears if there is no column of them, or more in it than is kept."""
    both = options.columns is not None  # then a column that is named may be of that sheet
    cells = _by_key(table, options.key, warnings, options.text, key_may_lack=both, text_may_lack=both)
    columns = list(next(iter(cells.values()), {}))
    if columns and "text" not in columns and not any(MORE_TEXT.fullmatch(name) for name in columns):
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


def _merge(
    cells: dict[str, dict[str, str]], more: Mapping[str, dict[str, str]], source: Path, warnings: list[str]
) -> None:
    _warn(warnings, f"{source}: read again, the first row counts", cells.keys() & more.keys())
    for key, values in more.items():
        cells.setdefault(key, values)


def _by_key(
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
    for row in rows:
        if position >= len(row) or not row[position].strip():
            continue
        key = name_key(row[position])
        cells = {
            name: " ".join(cell.split())
            for i, (name, cell) in enumerate(zip(names, row, strict=False))
            if name and i != position
        }
        if found.setdefault(key, cells) != cells:
            differ.add(row[position])
    _warn(warnings, f"{table}: named twice with different cells, the first row counts", differ)
    return found


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()
    )


def _stem(image: Path) -> str:
    return image.name[: -len(Reference(image).suffix)]


def _warn(warnings: list[str], what: str, names: Iterable[str]) -> None:
    names = sorted(names)
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        warnings.append(f"{what}: {len(names)} ({shown})")
