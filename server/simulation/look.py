"""python -m server look: what the models of a simulated run say of the sites' pictures, on one page.

Of a finished run the test pictures are shown; of one that still trains the validation pictures, with the models of the
newest checkpoints. Nothing of the run is changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from client.report.page import write_page
from client.report.sheet import Models, Network, Sheet, make_sheet, split_to_show
from client.state.store import SiteState, student_path
from dusss_core.config import TrainingConfig
from dusss_core.errors import UserError
from dusss_core.files import with_prefix
from dusss_core.objectives import reads_sentences
from dusss_core.phases import Phase
from dusss_core.text.bank import build_text_bank
from server.runs.checkpoints import Checkpoint, CheckpointStore
from server.runs.runfolder import read_study
from server.study.config import StudyConfig, study_digest
from sites.config import SiteConfig, load_site
from sites.dataset import SiteData

PAGE = "look.html"
_FINISHED = ("test", "val", "train")
_TRAINING = ("val", "train")
"""Choices are still made: nobody should make them on test pictures."""
_TRIES = 3
"""A checkpoint can be dropped while it is being opened, since newer ones are there."""
PRIVATE = (
    "This page shows pictures and sentences of the simulated sites. If they are patients', it is for the eyes of those "
    "who may see them: nothing sends it, and nobody should."
)


def look(
    folder: Path, *, each: int = 2, most: int = 500, device: str = "auto", say: Callable[[str], None] = print
) -> Path:
    """Write `folder`/look.html.

    Args:
        each: the worst, the median and the best pictures of each site, so many of each.
        most: pictures of each site that are looked at.
        say: told of each site that is done.

    Raises:
        UserError: no run, or one of real sites; no checkpoint yet.
    """
    from client.door.machine import resolve_device

    folder = Path(folder).absolute()
    study, run_key = read_study(folder)
    files = site_files_of(folder)
    finished = (folder / "summary.json").is_file()
    finals = newest_models(CheckpointStore(folder / "checkpoints", run_key, study_digest(study)))
    if not finals:
        raise UserError(f"{folder}: no round is finished yet", "look again when one is")
    sheets = []
    for file in files:
        site = load_site(file)
        where = resolve_device(site.device if device == "auto" else device)
        sheet = _sheet(study, run_key, site, finals, finished, each, most, where)
        sheets.append(sheet)
        say(f"{site.site}: {sheet.n} {sheet.split} pictures")
    kind = "finished" if finished else "in training; it is shown on validation pictures"
    about = [f"Study {study.study}, {kind}. Pictures are shown at the study's size, {study.image.size} pixels."]
    path = folder / PAGE
    write_page(path, f"{study.study}: what the models mark", "python -m server look", PRIVATE, about, sheets)
    return path


def site_files_of(folder: Path) -> Sequence[Path]:
    """The simulated sites of a run, or of the run that it is a comparison of."""
    for place in (folder / "sites", folder.parent.parent / "sites"):
        if (place / "index.json").is_file():
            index = json.loads((place / "index.json").read_text(encoding="utf-8"))
            return [place / file for file in index["site_files"]]
    raise UserError(
        f"{folder}: the sites' pictures are not there: it is no simulation",
        "each site has a page of its own, which it makes itself: python -m client report --site FILE",
    )


def newest_models(store: CheckpointStore) -> dict[Phase, Checkpoint]:
    """The final model of each phase, or while the phase goes on that of its last round."""
    for attempt in range(_TRIES):
        try:
            found = {phase: store.final(phase) or store.latest(phase) for phase in Phase}
            return {phase: checkpoint for phase, checkpoint in found.items() if checkpoint is not None}
        except UserError:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError


def _sheet(
    study: StudyConfig,
    run_key: str,
    site: SiteConfig,
    finals: dict[Phase, Checkpoint],
    finished: bool,
    each: int,
    most: int,
    device: str,
) -> Sheet:
    config = study.training()
    data = SiteData(site, config.image)
    cache = site.state_dir / "cache" / "text"
    name, split = split_to_show(data, _FINISHED if finished else _TRAINING)
    models = models_of(config, site, data, run_key, finals, finished, device)
    return make_sheet(site.site, split, name, models, each=each, most=most, device=device, text_cache=cache)


def models_of(
    config: TrainingConfig,
    site: SiteConfig,
    data: SiteData,
    run_key: str,
    finals: dict[Phase, Checkpoint],
    finished: bool,
    device: str,
) -> Models:
    """What a simulated site has of a run, with the layers that it keeps.

    Args:
        finals: as `newest_models`.
        finished: whether the site has been tested with the final student.
    """
    state = SiteState(site.state_dir, config.study, run_key)

    def at_site(phase: Phase) -> Network | None:
        """The phase's model with the layers that the site keeps of it; None where it keeps none and should."""
        checkpoint = finals.get(phase)
        if checkpoint is None:
            return None
        local = state.local_layers(phase, checkpoint.round)
        if not local and (config.local_norm or (phase == Phase.SEGMENT and config.personal.own_head != "none")):
            return None
        tensors = _with_statistics(config, phase, {**checkpoint.model, **local}, site, data, device)
        return Network(config, tensors, phase == Phase.SEGMENT and reads_sentences(config))

    names = {Phase.PRETRAIN: "vision-language model", Phase.SEGMENT: "student"}
    notes = [f"The {names[phase]} is that of round {one.round}." for phase, one in finals.items()]
    student = _finished_student(config, site, run_key) if finished else None
    newest = state.newest(Phase.SEGMENT, before=10**9)
    teacher = with_prefix(newest[0], "objective.teacher.") if newest else {}
    if teacher:
        notes.append(f"The teacher is that of the site's round {newest[1]}.")
    own = state.personal()
    if own is not None and not finished:
        own = _with_statistics(config, Phase.SEGMENT, own[0], site, data, device), own[1]
    return Models(
        student=student or at_site(Phase.SEGMENT),
        teacher=Network(config, teacher) if teacher else None,
        own=Network(config, own[0]) if own else None,
        vlm=at_site(Phase.PRETRAIN) if config.method.text_mask else None,
        notes=tuple(notes),
    )


def _finished_student(config: TrainingConfig, site: SiteConfig, run_key: str) -> Network | None:
    """The student that the site was tested with."""
    path = student_path(site.state_dir, config.study, run_key)
    if not path.is_file():
        return None
    from dusss_core.student import read_student

    about, tensors = read_student(path)
    return Network(about.config(), tensors, about.hears)


def _with_statistics(
    config: TrainingConfig, phase: Phase, tensors: dict, site: SiteConfig, data: SiteData, device: str
):
    from dusss_core.training import with_own_statistics

    if not config.local_norm:
        return tensors
    train, text = data.split("train"), None
    if config.vlm.text.tuning == "frozen" and (phase.reads_sentences or reads_sentences(config)):
        cache = site.state_dir / "cache" / "text"
        text = build_text_bank(train.sentences, config.vlm.text, cache, device, augmented=False)
    return with_own_statistics(config, phase, tensors, train, text, device)
