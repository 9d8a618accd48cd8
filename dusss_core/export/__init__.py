"""A finished student in other formats: ONNX, TorchScript, a MONAI bundle, and a model card.

May enter: a student that was loaded. What a format cannot express is refused by name, and a graph is compared with the
student before it is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dusss_core.errors import UserError

if TYPE_CHECKING:
    from dusss_core.student import Student

_TARGETS = {"onnx": "model.onnx", "torchscript": "model.pt", "monai-bundle": "bundle", "card": "README.md"}


def export(
    student: Student, to: str, out: Path | None = None, *, run: Path | None = None, licence: str = "unknown"
) -> str:
    """Write the student as `to` (onnx, torchscript, monai-bundle, card).

    Args:
        out: file or folder; None: beside the student's file.
        run: card: the run's folder, whose figures it tells; None: the student's, if they are there.

    Returns:
        What was written, for people.

    Raises:
        UserError: the student must be fitted first, the format cannot express it, or a package is missing.
    """
    source = Path(student.source)
    target = out or source.with_name(_TARGETS[to])
    if to == "card":
        from dusss_core.export.card import write_card

        return write_card(student, target, run or source.parent, licence)
    student.check_usable()
    _check_network(student)
    if to == "onnx":
        from dusss_core.export.graph import write_onnx

        return write_onnx(student, target)
    if to == "torchscript":
        from dusss_core.export.graph import write_torchscript

        return write_torchscript(student, target)
    from dusss_core.export.bundle import write_bundle

    return write_bundle(student, target, licence)


def _check_network(student: Student) -> None:
    """Refuse what no graph of a picture alone expresses.

    Raises:
        UserError: a network that is given sentences.
    """
    from dusss_core.config import TEXT_NETWORKS

    network = student.about.network.kind
    if network in TEXT_NETWORKS:
        raise UserError(
            f"{student.source}: {network} takes a sentence beside the picture, and pictures of one size: no other "
            "format has a place for them",
            "use the student's own file, or --to card",
        )
