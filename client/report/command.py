"""python -m client report: the hospital's own page of a finished study, which never leaves it.

The student, the vision-language model, the teacher and a student of its own are those that this site keeps; nothing is
asked of a coordinator, and no message of one can ask for this page.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from client.report.page import write_page
from client.report.sheet import Models, Network, make_sheet, split_to_show
from client.state.store import SiteState
from dusss_core.errors import UserError
from dusss_core.files import make_private, with_prefix
from dusss_core.phases import Phase
from sites.config import SiteConfig
from sites.dataset import SiteData

if TYPE_CHECKING:
    from dusss_core.student import About

FOLDER = "reports"
"""In the site's state_dir."""
_SPLITS = ("test", "val", "train")
PRIVATE = (
    "This page shows pictures and sentences of patients. It is for the hospital's own eyes: nothing sends it, and "
    "nobody should."
)


def report(site: SiteConfig, study: str | None = None, *, each: int = 3, most: int = 500) -> Path:
    """Write the page of the study that this site finished last, or of `study`.

    Args:
        each: the worst, the median and the best pictures, so many of each.
        most: pictures that are looked at.

    Returns:
        The page: `state_dir`/reports/STUDY-KEY.html, readable by its owner alone.

    Raises:
        UserError: no finished study here; pictures that cannot be read; disk full.
    """
    from client.door.machine import resolve_device
    from dusss_core.student import read_student

    path = _student(site, study)
    about, tensors = read_student(path)
    data, device = SiteData(site, about.image), resolve_device(site.device)
    name, split = split_to_show(data, _SPLITS)
    if not len(split):
        raise UserError(f"{site.data.manifest}: no picture that this site may show", "see limits.splits of the site")
    models = _models(site, about, tensors, path)
    cache = site.state_dir / "cache" / "text"
    sheet = make_sheet(site.site, split, name, models, each=each, most=most, device=device, text_cache=cache)
    page = site.state_dir / FOLDER / f"{path.stem}.html"
    make_private(page.parent)
    of = f"Study {about.study}, the student of round {about.round}. Pictures are shown at the study's size"
    title = f"{site.site}: what the models of {about.study} mark"
    write_page(page, title, "python -m client report", PRIVATE, [f"{of}, {about.image.size} pixels."], [sheet])
    return page


def _student(site: SiteConfig, study: str | None) -> Path:
    """The file of the newest finished student here."""
    from dusss_core.student import students_in

    folder = site.state_dir / "students"
    files = students_in(folder)
    named = [file for file in files if study is None or file.stem.rpartition("-")[0] == study]
    if not named:
        there = ", ".join(sorted({file.stem.rpartition("-")[0] for file in files})) or "none"
        raise UserError(
            f"{folder}: no finished student{f' of study {study}' if study else ''} (studies: {there})",
            "a study's student is kept here when it has been tested at this site; name its study with --study",
        )
    return max(named, key=lambda file: (file.stat().st_mtime_ns, file.name))


def _models(site: SiteConfig, about: About, tensors: dict, path: Path) -> Models:
    from dusss_core.student import personal_path, read_student, read_vlm, vlm_path

    config, key = about.config(), path.stem.rpartition("-")[2]
    student = Network(config, tensors, about.hears)
    notes, vlm, teacher = [], None, {}
    if vlm_path(path).is_file():
        guide, weights = read_vlm(vlm_path(path))
        vlm = Network(guide.config(), weights)
        notes.append(f"The vision-language model is that of round {guide.round}.")
    own = read_student(personal_path(path))[1] if personal_path(path).is_file() else {}
    # the private state is kept by the whole key, and for the last studies alone
    for folder in (site.state_dir / "studies" / about.study).glob(f"{key}*"):
        state = SiteState(site.state_dir, about.study, folder.name)
        newest = state.newest(Phase.SEGMENT, before=10**9)
        if newest and (teacher := with_prefix(newest[0], "objective.teacher.")):
            notes.append(f"The teacher is that of this site's round {newest[1]}.")
    return Models(
        student=student,
        teacher=_fitting(student, teacher),
        own=_fitting(student, own),
        vlm=vlm,
        notes=tuple(notes),
    )


def _fitting(student: Network, tensors: dict) -> Network | None:
    """A network of the student's kind, without the decoders that only training compares with; None for nothing."""
    known = {name: value for name, value in tensors.items() if name in student.tensors}
    return Network(student.config, known) if len(known) == len(student.tensors) else None
