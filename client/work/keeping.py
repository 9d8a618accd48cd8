"""What a site keeps of models for itself, and never sends: finished ones, as files that each load by themselves, and in
the run's state the best so far of its own.

The state of a run goes when others need its room; the files stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.declined import Declined
from client.door.request import Judged
from client.state.store import student_path, write_log
from client.work.workbench import Workbench
from dusss_core.phases import Phase

LEAST_TO_FIT = 2
"""Pictures that normalisation layers need at least."""

if TYPE_CHECKING:
    from torch import Tensor

    from dusss_core.training.trainer import PhaseTrainer


def keep_student(request: Judged, student: dict[str, Tensor]) -> None:
    """Write the final student, whole, with the layers that stay at this site.

    Raises:
        UserError: disk full or no permission.
    """
    from dusss_core import student as finished

    config, path = request.training, _path(request)
    header = _header(request, config.local_norm, request.round)
    if config.personal.own_head != "none":
        header["site"] = request.site.site
    finished.write_student(path, finished.About.of(config, **header), finished.whole_student(config, student))
    write_log(request.site.state_dir, f"the finished student is in {path}")


def offer_own_student(request: Judged, trainer: PhaseTrainer, figures: Mapping[str, float]) -> None:
    """Keep this site's student of the round before, which has just been validated, if it is the best so far.

    Args:
        figures: of `trainer.validate`.

    Raises:
        UserError: the disk is full, or does not allow writing.
    """
    if request.phase != Phase.SEGMENT or not request.training.personal.beside or "personal_dice" not in figures:
        return
    student = trainer.personal_student()
    if student is not None:
        request.state.offer_personal(request.round - 1, student, figures["personal_dice"])


def keep_own_student(request: Judged, student: dict[str, Tensor], round: int) -> None:
    """Write the student that is this site's own (`personal`), whole, beside the one that all trained.

    Args:
        round: that it is of.

    Raises:
        UserError: disk full or no permission.
    """
    from dusss_core import student as finished

    config, path = request.training, finished.personal_path(_path(request))
    about = finished.About.of(config, **_header(request, True, round), personal=config.personal.kind)
    finished.write_student(path, about, finished.whole_student(config, student))
    write_log(request.site.state_dir, f"this site's own student is in {path}")


def keep_fitted_student(request: Judged, student: dict[str, Tensor], bench: Workbench) -> None:
    """Write a student for a site that trained none of its normalisation layers (`local_norm`): with statistics of its
    own pictures, whose masks are not looked at. Its figures are not measured here.

    Raises:
        UserError: disk full or no permission.
    """
    from dusss_core import student as finished

    path, log = _path(request), request.site.state_dir
    splits = (bench.split(name) for name in ("train", "val", "test"))
    images = next((split.images for split in splits if len(split) >= LEAST_TO_FIT), ())
    about = {"study_digest": request.study_digest, "round": request.round}
    if finished.write_fitted(path, request.training, student, request.layers or {}, images, bench.device, **about):
        write_log(log, f"a student that is fitted to this site's pictures is in {path}")
    else:
        write_log(log, "too few pictures to fit a student of this site's own to")


def keep_finished_vlm(request: Judged, vlm: dict[str, Tensor]) -> None:
    """Write the whole vision-language model beside the student, where the site allows it to be built.

    Raises:
        UserError: disk full or no permission.
    """
    from dusss_core import student as finished

    config = request.training
    try:
        request.allowed.language()  # writing it reads its text encoder's settings
    except Declined:
        return
    header = _header(request, config.local_norm, request.vlm_round)
    finished.write_vlm(finished.vlm_path(_path(request)), config, vlm, **header)


def _path(request: Judged) -> Path:
    return student_path(request.site.state_dir, request.training.study, request.run_key)


def _header(request: Judged, own_layers: bool, round: int) -> dict[str, Any]:
    """What a file says of where its model comes from; with `own_layers` normalisation layers are this site's."""
    return {
        "layers": "site" if own_layers else "shared",
        "site": request.site.site if own_layers else None,
        "study_digest": request.study_digest,
        "round": round,
    }
