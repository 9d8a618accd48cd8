"""The finished student of a run, as a file that a stranger can load: RUN/student.safetensors.

What a site keeps to itself is in no file here: with `local_norm` each site writes a student of its own, with its own
normalisation layers (`client.work.evaluation`). Only a simulation, which owns all of them, gathers these.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from dusss_core.files import write_atomically
from server.runs.checkpoints import Checkpoint
from server.study.config import StudyConfig

STUDENT, VLM, STUDENTS = "student.safetensors", "student.vlm.safetensors", "students"


def write_student_of_run(folder: Path, study: StudyConfig, digest: str, final: Checkpoint) -> Path | None:
    """Write the student for those who took no part, and for all where layers are shared; None where only the sites have
    a whole one (`personal: fedrep`).

    Raises:
        UserError: disk full or no permission.
    """
    from dusss_core import student  # torch, which only looking at runs does without

    config = study.training()
    if config.personal.own_head != "none":
        return None
    about = student.About.of(
        config, layers=student.layers_without_a_site(config), study_digest=digest, round=final.round
    )
    student.write_student(folder / STUDENT, about, student.whole_student(config, final.model, final.layers))
    return folder / STUDENT


def write_vlm_of_run(folder: Path, study: StudyConfig, digest: str, final: Checkpoint | None) -> Path | None:
    """Write the vision-language model beside the student; None where the study has none, or only the sites have a whole
    one (`local_norm`).

    Raises:
        UserError: disk full or no permission.
    """
    from dusss_core import student

    config = study.training()
    if final is None or config.local_norm or not config.method.text_mask:
        return None
    path = folder / VLM
    student.write_vlm(path, config, final.model, layers="shared", study_digest=digest, round=final.round)
    return path


def gather_students(folder: Path, written: Mapping[str, Path]) -> None:
    """Copy simulated sites' own students to RUN/students/NAME.safetensors, and what lies beside each.

    Args:
        written: the file of each site; one that is not there is left out.
    """
    from dusss_core import student

    for name, path in written.items():
        target = folder / STUDENTS / f"{name}.safetensors"
        for place in (Path, student.vlm_path, student.personal_path):
            one, copy = place(path), place(target)
            if one.is_file():
                write_atomically(copy, lambda temporary, one=one: shutil.copyfile(one, temporary) and None)
