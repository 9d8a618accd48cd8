"""Manifests for data that already lie in a usual folder layout. Pictures are not copied."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dusss_core.errors import UserError
from dusss_core.manifest import SPLITS, Record, patient_key, sentences_of, write_manifest
from dusss_core.readers import Reference
from dusss_core.sheets import SUFFIXES, name_key
from sites.sheets import NO, is_known, is_text, merge, mistakes, read_sheet, rows_by_picture, warn_of

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
    """CSV or xlsx file with further columns (hospital, patient, mask, labelled, ...), joined by the picture's name."""
    key: str | None = None
    """Column that names the picture, there or in the sheet of texts; image, id, file, name or slide if None."""
    text: str | None = None
    """Column of the sentences; text, description, report, caption, sentence, findings or impression if None."""
    extract: Mapping[str, str] = field(default_factory=dict)
    """Column -> regular expression on the picture's name; its first group, or whole match, is the column's
    value."""
    force: bool = False
    """Overwrite an existing manifest."""
    splits_kept: bool = True
    """False: other splits are drawn later, so that a patient may be in several of these."""


@dataclass(frozen=True)
class _Masks:
    """A folder of masks."""

    folder: Path
    by_key: Mapping[str, list[Path]]

    @classmethod
    def of(cls, folder: Path) -> _Masks:
        by_key = defaultdict(list)
        for path in _pictures(folder):
            by_key[name_key(path.name)].append(path)
        return cls(folder, dict(by_key))

    def find(self, image: Path, named: str) -> Path | None:
        """The mask with a picture's name, or else the one that a sheet names."""
        found = self.by_key.get(name_key(image.name)) or (self.by_key.get(name_key(named), []) if named else [])
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise UserError(f"{image}: has {len(found)} masks in {self.folder}: {names}", "keep the one that is right")
        return found[0] if found else _named_file(self.folder.parent, named)


@dataclass(frozen=True)
class _Picture:
    """A picture, and what is known of it before --columns is read."""

    image: Path
    masks: _Masks
    split: str
    cells: Mapping[str, str]


@dataclass
class _Found:
    """What an import has come upon so far."""

    target: Path
    pictures: list[_Picture] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def import_lvit(folder: Path, options: ImportOptions = ImportOptions()) -> Imported:
    """Import LViT's layout (QaTa-COV19, MoNuSeg): {Train,Val,Test}_Folder with img, labelcol and *.xlsx.

    Masks and texts are found by the picture's name, by the mask's, with or without `mask_` and any known
    suffix.

    Raises:
        UserError: no such folders, no pictures, two pictures or a picture's masks of one name, a patient in two splits,
            a manifest that exists.
    """
    target = _target(folder, options)
    found = {name: folder / name for name in LVIT_FOLDERS if (folder / name).is_dir()}
    if not found:
        raise UserError(f"{folder}: none of {', '.join(LVIT_FOLDERS)} is there", "name the folder that holds them")
    result = _Found(target)
    _warn_beside(folder, "img", found.values(), result.warnings)
    for name, place in found.items():
        cells: dict[str, dict[str, str]] = {}
        for table in _lvit_sheets(place):
            merge(cells, _sentences(table, options, result.warnings), table, result.warnings)
        _add(result, place / "img", place / "labelcol", LVIT_FOLDERS[name], cells)
    return _finish(result, options)


def lvit_sources(folder: Path) -> list[Path]:
    """What `import_lvit` looks at: a manifest that it made is as new as these are, sheets, and folders of files."""
    places = [folder / name for name in LVIT_FOLDERS]
    return [path for place in places for path in (place / "img", place / "labelcol", *_lvit_sheets(place))]


def _lvit_sheets(place: Path) -> list[Path]:
    tables = sorted(place.glob("*.xlsx")) + sorted(place.glob("*.csv"))
    return [table for table in tables if not table.name.startswith("~$")]


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
    result = _Found(target)
    _warn_beside(folder, "images", [place for place, _ in places] or [folder], result.warnings)
    shared = _texts(folder, options, result.warnings)
    for place, split in places or [(folder, "train")]:
        cells = dict(shared)
        if places:
            merge(cells, _texts(place, options, result.warnings), place, result.warnings)
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
    result: _Found,
    images: Path,
    masks: Path,
    split: str,
    cells: Mapping[str, Mapping[str, str]],
    report_unused: bool = True,
) -> None:
    """Append every picture in `images`."""
    folder = _Masks.of(masks)
    seen: dict[str, Path] = {}
    for image in _pictures(images):
        key = name_key(image.name)
        if key in seen:
            raise UserError(f"{image}: has the same name as {seen[key].name}", "give each picture its own name")
        seen[key] = image
        result.pictures.append(_Picture(image, folder, split, cells.get(key, {})))
    _warn_passed_over(images, result.warnings)
    if report_unused:
        warn_of(result.warnings, f"{images}: no picture for these texts", cells.keys() - seen.keys())


def _finish(result: _Found, options: ImportOptions) -> Imported:
    pictures, warnings = result.pictures, result.warnings
    if not pictures:
        raise UserError(f"{result.target.parent}: no pictures found", f"pictures end in {', '.join(SUFFIXES)}")
    joined = {}
    if options.columns:
        told = any(sentences_of(picture.cells) for picture in pictures)  # then --text was of another sheet
        joined = rows_by_picture(options.columns, options.key, warnings, options.text, text_may_lack=told)
    if options.columns and not any(name_key(picture.image.name) in joined for picture in pictures):
        raise UserError(f"{options.columns}: no row names one of the pictures", "name its key column with --key")
    records = []
    for row, picture in enumerate(pictures, start=2):
        more = {**joined.get(name_key(picture.image.name), {}), **_extracted(picture.image, options.extract)}
        records.append(_record(picture, _together(picture.cells, more), row))
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(record.id.casefold(), record)
        if other is not record:
            name = _either(record.id, other.id)
            raise UserError(
                f"two pictures are called '{name}': {other.image} and {record.image}",
                "rename one, or remove it from one of the splits",
            )
    if options.splits_kept:
        _refuse_torn(records)
    _warn_unused(pictures, records, warnings)
    if options.columns:
        warn_of(
            warnings,
            f"{options.columns}: no row for these pictures",
            {record.id for record in records if name_key(record.id) not in joined},
        )
    warn_of(warnings, "pictures without a mask", {record.id for record in records if record.mask is None})
    warn_of(warnings, "pictures without a text", {record.id for record in records if not record.text})
    write_manifest(result.target, records)
    return Imported(result.target, records, warnings)


def _refuse_torn(records: Iterable[Record]) -> None:
    """The manifest would be refused where it is read, with rows that no sheet has."""
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(patient_key(record.patient), record) if record.patient else record
        if other.split != record.split:
            raise UserError(
                f"patient '{_either(other.patient, record.patient)}' is in {other.split} with {other.image} and in "
                f"{record.split} with {record.image}",
                "put all pictures of a patient into one split: a column split of a sheet counts before the folder",
            )


def _either(one: str, other: str) -> str:
    return one if one == other else f"{one}' or '{other}"


def _extracted(image: Path, extract: Mapping[str, str]) -> dict[str, str]:
    """The columns that a picture's name gives."""
    cells = {}
    for column, pattern in extract.items():
        try:
            match = re.search(pattern, _stem(image))
        except re.error as error:
            raise UserError(f"--extract {column}={pattern}: not a regular expression: {error}", "correct it") from None
        cells[column] = (match[1] if match.lastindex else match[0]) if match else ""
    for mistake in mistakes(0, cells):
        raise UserError(f"{image.name}: {mistake.text} by --extract", mistake.remedy)
    return cells


def _together(cells: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """The cells of the sheet of texts and those of --columns, which count first. What the manifest knows is not taken
    back by an empty cell, and the sentences are those of one sheet."""
    told = bool(sentences_of(more))
    kept = {name: value for name, value in cells.items() if not (told and is_text(name))}
    return {**kept, **{name: value for name, value in more.items() if value or not is_known(name)}}


def _record(picture: _Picture, cells: Mapping[str, str], row: int) -> Record:
    mask = picture.masks.find(picture.image, cells.get("mask", ""))
    texts = sentences_of(cells)
    return Record(
        id=_stem(picture.image),
        image=picture.image.absolute(),
        mask=mask.absolute() if mask else None,
        split=cells.get("split", "").lower() or picture.split,
        patient=cells.get("patient", ""),
        labelled=mask is not None and cells.get("labelled", "").lower() not in NO,
        # what the manifest knows has its place, and must not stand there twice
        extra={name: value for name, value in cells.items() if not is_known(name)},
        text=texts[0] if texts else "",
        more_texts=texts[1:],
        row=row,
    )


def _warn_unused(pictures: Iterable[_Picture], records: Iterable[Record], warnings: list[str]) -> None:
    used = {record.mask for record in records}
    for masks in {picture.masks.folder: picture.masks for picture in pictures}.values():
        left = {key for key, paths in masks.by_key.items() if paths[0].absolute() not in used}
        warn_of(warnings, f"{masks.folder}: no picture for these masks", left)


def _named_file(folder: Path, name: str) -> Path | None:
    return folder / name if name and (folder / name).is_file() else None


def _sentences(table: Path, options: ImportOptions, warnings: list[str]) -> dict[str, dict[str, str]]:
    return read_sheet(table, options.key, warnings, options.text, may_lack=options.columns is not None)


def _texts(folder: Path, options: ImportOptions, warnings: list[str]) -> dict[str, dict[str, str]]:
    for name in ("texts.csv", "texts.xlsx"):
        if (folder / name).is_file():
            return _sentences(folder / name, options, warnings)
    if not options.columns:
        others = {path.name for path in [*folder.glob("*.csv"), *folder.glob("*.xlsx")]} - {"manifest.csv"}
        others = {name for name in others if not name.startswith(("~$", "."))}
        warn_of(warnings, f"{folder}: sheets that are not read: name one with --columns, or call it texts.csv", others)
    return {}


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()
    )


def _warn_passed_over(folder: Path, warnings: list[str]) -> None:
    """Pictures of a kind that is not read would be missing in silence."""
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    others = [path for path in files if not path.name.startswith(".") and not path.name.lower().endswith(SUFFIXES)]
    if others:
        suffixes = ", ".join(sorted({path.suffix.lower() or "no suffix" for path in others}))
        warnings.append(f"{folder}: files that are not read: {len(others)} ({suffixes})")

    inner = {path.name for path in _folders(folder) if any(p.name.lower().endswith(SUFFIXES) for p in path.rglob("*"))}
    warn_of(warnings, f"{folder}: folders in it are not read, and hold pictures", inner)


def _warn_beside(folder: Path, name: str, read: Iterable[Path], warnings: list[str]) -> None:
    """Pictures beside the known splits, as in validation/ or next to train/, would be missing in silence."""
    beside = {place / name for place in (folder, *_folders(folder)) if place not in read}
    others = {path.relative_to(folder).as_posix() for path in beside if _pictures(path)}
    warn_of(warnings, f"{folder}: folders of pictures that are not read, since no split is called so", others)


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _stem(image: Path) -> str:
    return image.name[: -len(Reference(image).suffix)]
