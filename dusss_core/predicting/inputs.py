"""From files and folders to jobs: a picture, the pages of a TIFF, the slices of a volume, a series of DICOM files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dusss_core.errors import UserError
from dusss_core.readers import READERS, Raw, Reference, parse_reference, read_raw
from dusss_core.readers.dicom import raw_of_dataset
from dusss_core.readers.nifti import Volume

Kind = Literal["picture", "pages", "volume", "series"]
_VOLUMES = (".nii", ".nii.gz")
_DICOM = (".dcm", ".dicom")
_DIRECTORY = b"1.2.840.10008.1.3.10"
"""Media Storage Directory Storage (PS3.4 B.5), near the beginning of each DICOMDIR."""


@dataclass(frozen=True)
class Job:
    """What is predicted, written and resumed as one."""

    kind: Kind
    name: str
    """Of its outputs, below the output folder; may hold folders."""
    files: tuple[Path, ...]
    """Its sources: several for a series, in order."""
    part: str = ""
    """A single slice, frame or page: what follows the `#`."""

    @property
    def stamp(self) -> list[list]:
        """Path, size and time of change of each source, for resuming."""
        status = [(file, file.stat()) for file in self.files]
        return [[str(file), now.st_size, now.st_mtime_ns] for file, now in status]


def find_jobs(paths: Iterable[Path | str], out: Path) -> list[Job]:
    """The jobs in files and folders (at any depth, without what lies in `out`), in order of their names.

    DICOM files of one series and size are one job; files without a suffix that is known are looked at, since DICOM
    often has none, or a UID for a name.

    Raises:
        UserError: a path that is not there, has no reader, or a folder without any picture.
    """
    named: list[tuple[Path, Path]] = []  # the folder that the output's name counts from, and the file
    single: list[Job] = []
    for path in paths:
        if not str(path):
            raise UserError("an empty name among the pictures", "name a file or a folder; this one is .")
        reference = parse_reference(str(path))
        if reference.index is not None:
            part = str(path).rpartition("#")[2]
            name = f"{_stem(reference.file)}_{part.replace('=', '')}"
            single.append(Job("picture", name, (_there(reference.file),), part))
        elif Path(path).is_dir():
            there = [file for file in sorted(Path(path).rglob("*")) if _is_picture(file)]
            found = [file for file in there if not _within(file, out)]
            if there and not found:
                raise UserError(
                    f"{path}: all its pictures lie in {out}, where the outputs go", "name another folder for --out"
                )
            if not found:
                known = ", ".join(sorted(READERS))
                raise UserError(f"{path}: no picture in this folder", f"formats that are read: {known}, DICOM")
            named += [(Path(path), file) for file in found]
        else:
            file = _there(Path(path))
            if _is_directory(file):
                raise UserError(f"{path}: a DICOMDIR, which holds no picture", "name its folder")
            if not _is_picture(file):
                known = ", ".join(sorted(READERS))
                raise UserError(f"{path}: no reader for '{file.suffix}' files", f"convert it to one of {known}")
            named.append((file.parent, file))
    # one that was named by itself and with its folder is one; links of other names are files of their own
    named = list({file.parent.resolve() / file.name: (root, file) for root, file in reversed(named)}.values())[::-1]
    single = list({(job.files[0].resolve(), job.part): job for job in reversed(single)}.values())[::-1]
    dicom = [(root, file) for root, file in named if _is_dicom(file)]
    plain = [(root, file) for root, file in named if not _is_dicom(file)]
    return _distinct([*single, *(_plain(root, file) for root, file in plain), *_series(dicom)])


def pictures_of(job: Job) -> Iterator[Raw]:
    """The pictures of a job, one after the other.

    Raises:
        UserError: as `dusss_core.readers.read_raw`.
    """
    file = job.files[0]
    if job.part:
        yield read_raw(f"{file}#{job.part}")
    elif job.kind == "picture":
        yield read_raw(file)
    elif job.kind == "pages":
        for page in range(pages_of(file)):
            yield read_raw(f"{file}#{page}")
    elif job.kind == "volume":
        yield from _readable(file, _slices(file))
    else:
        for file in job.files:
            yield from _readable(file, _frames(file))


def count_of(job: Job) -> int | None:
    """Pictures of a job; None where it cannot be told, since reading it will say why."""
    file = job.files[0]
    try:
        if job.kind == "pages":
            return pages_of(file)
        if job.kind == "volume":
            return len(Volume(file))
        if job.kind == "series" and len(job.files) == 1:
            import pydicom

            tags = pydicom.dcmread(file, stop_before_pixels=True)
            return int(tags.get("NumberOfFrames", 1) or 1)
    except Exception:  # decoders raise whatever they like on damaged files
        return None
    return len(job.files)


def pages_of(file: Path) -> int:
    """Pages of a picture's file; 1 where it cannot be told, since reading it will say why."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return getattr(picture, "n_frames", 1)
    except Exception:
        return 1


def _slices(file: Path) -> Iterator[Raw]:
    import numpy as np

    volume = Volume(file)
    # one pass over a compressed file in place of one for each slice
    volume.image = type(volume.image)(np.asanyarray(volume.image.dataobj), volume.image.affine, volume.image.header)
    for index in range(len(volume)):
        yield volume.raw(index)


def _frames(file: Path) -> Iterator[Raw]:
    import pydicom

    dataset = pydicom.dcmread(file)
    if "PixelData" not in dataset:
        raise UserError(f"{file}: a DICOM file without a picture", "leave it out")
    for frame in range(int(dataset.get("NumberOfFrames", 1) or 1)):
        yield raw_of_dataset(dataset, Reference(file, frame))


def _readable(file: Path, pictures: Iterator[Raw]) -> Iterator[Raw]:
    try:
        yield from pictures
    except (UserError, MemoryError, GeneratorExit):
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        reason = str(error) or type(error).__name__
        raise UserError(f"{file}: could not be read: {reason}", "export or copy the file again") from error


def _plain(root: Path, file: Path) -> Job:
    suffix = parse_reference(file).suffix
    name = (file.relative_to(root).parent / _stem(file)).as_posix()
    if suffix in _VOLUMES:
        return Job("volume", name, (file,))
    several = suffix in (".tif", ".tiff") and pages_of(file) > 1
    return Job("pages" if several else "picture", name, (file,))


def _series(files: Sequence[tuple[Path, Path]]) -> list[Job]:
    groups: dict[tuple, list[tuple[tuple, Path, Path]]] = {}
    for root, file in files:
        series, place = _series_and_place(file)
        groups.setdefault(series, []).append((place, root, file))
    jobs = []
    for members in groups.values():
        members = sorted(members, key=lambda member: member[0])
        _, root, first = members[0]
        inside = first.relative_to(root)
        # a series is named for its folder where it has one, a single file for itself
        name = inside.parent / _stem(first) if len(members) == 1 or inside.parent == Path() else inside.parent
        jobs.append(Job("series", name.as_posix(), tuple(file for _, _, file in members)))
    return jobs


def _series_and_place(file: Path) -> tuple[tuple, tuple]:
    """What names a file's series, and where it lies there; one whose tags cannot be read is by itself."""
    import pydicom

    try:
        tags = pydicom.dcmread(file, stop_before_pixels=True)
        # pydicom converts a tag when it is asked for
        series = (str(tags.get("SeriesInstanceUID") or file), tags.get("Rows"), tags.get("Columns"))
        if int(tags.get("NumberOfFrames", 1) or 1) > 1:
            series = (str(file),)  # frames of several files cannot be told apart in one segmentation
        return series, _place(tags, file)
    except Exception:
        return (str(file),), (0.0, 0, str(file))  # reading it will say why


def _place(tags: Any, file: Path) -> tuple:
    """Where a file lies in its series: along the normal of its slices, or by its number."""
    position, orientation = tags.get("ImagePositionPatient"), tags.get("ImageOrientationPatient")
    along = 0.0
    if position and orientation and len(position) == 3 and len(orientation) == 6:
        import numpy as np

        row, column = np.asarray(orientation, float).reshape(2, 3)
        along = float(np.cross(row, column) @ np.asarray(position, float))
    return (round(along, 4), int(tags.get("InstanceNumber") or 0), str(file))


def _distinct(jobs: list[Job]) -> list[Job]:
    """Jobs whose names differ: those that share one get a number, the first that makes it a name of its own."""
    taken = {job.name for job in jobs}
    seen: dict[str, int] = {}
    found = []
    for job in sorted(jobs, key=lambda job: (job.name, str(job.files[0]))):
        name, number = job.name, seen.get(job.name, 0) + 1
        if number > 1:
            while (name := f"{job.name}_{number}") in taken:
                number += 1
            taken.add(name)
        seen[job.name] = number
        found.append(Job(job.kind, name, job.files, job.part))
    return found


def _there(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"{file}: no such file", "check the path")
    return file


def _stem(file: Path) -> str:
    """A file's name without the suffix of a format; what stands behind another dot is part of it, as in a UID."""
    name = file.name
    suffix = parse_reference(file).suffix
    return name[: -len(suffix)] if suffix in READERS and len(name) > len(suffix) else name


def _is_picture(file: Path) -> bool:
    return (
        file.is_file()
        and not file.name.startswith(".")
        and (parse_reference(file).suffix in READERS or _is_dicom(file))
        and not _is_directory(file)
    )


def _is_dicom(file: Path) -> bool:
    """Whether its suffix says so; without one that is known, as in files that a UID names, its beginning."""
    suffix = parse_reference(file).suffix
    if suffix in READERS:
        return suffix in _DICOM
    try:
        with file.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _is_directory(file: Path) -> bool:
    """Whether it is a DICOMDIR, which lists the pictures of a medium and holds none."""
    if not _is_dicom(file):
        return False
    try:
        with file.open("rb") as opened:
            return _DIRECTORY in opened.read(1024)
    except OSError:
        return False


def _within(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())
