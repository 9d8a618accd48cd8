"""The finished student of a run, as a file that a stranger can load: RUN/student.safetensors.

What a site keeps to itself is in no file here: with `local_norm` each site writes a student of its own, with its own
normalisation layers (`client.work.evaluation`). Only a simulation, which owns all of them, gathers these.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from dusss_core import student
from dusss_core.files import write_atomically
from server.runs.checkpoints import Checkpoint
from server.study.config import StudyConfig

STUDENT, STUDENTS = "student.safetensors", "students"


def write_student_of_run(folder: Path, study: StudyConfig, digest: str, final: Checkpoint) -> Path | None:
    """Write the student for those who took no part, and for all where layers are shared; None where only the sites have
    a whole one (`personal: fedrep`).

    Raises:
        UserError: disk full or no permission.
    """
    config = study.training()
    if config.personal.own_head != "none":
        return None
    about = student.About.of(
        config, layers=student.layers_without_a_site(config), study_digest=digest, round=final.round
    )
    student.write_student(folder / STUDENT, about, student.whole_student(config, final.model))
    return folder / STUDENT


def gather_students(folder: Path, written: Mapping[str, Path]) -> None:
    """Copy simulated sites' own students to RUN/students/NAME.safetensors.

    Args:
        written: the file of each site; one that is not there is left out.
    """
    for name, path in written.items():
        if path.is_file():
            target = folder / STUDENTS / f"{name}.safetensors"
            write_atomically(target, lambda temporary, path=path: shutil.copyfile(path, temporary) and None)
