"""A finished student in other formats: ONNX, TorchScript, a MONAI bundle, and a model card.

May enter: a student that was loaded. What a format cannot express is refused by name, and a graph is compared with the
student before it is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dusss_core.errors import UserError
from dusss_core.files import check_replaceable

if TYPE_CHECKING:
    from dusss_core.student import Student

_TARGETS = {"onnx": "model.onnx", "torchscript": "model.pt", "monai-bundle": "bundle", "card": "README.md"}
_MARKS = {
    "onnx": (b"\x08", b"feddusss.student"),
    "torchscript": (b"PK", b"feddusss.student"),
    "card": (b"---\n", b"feddusss"),
}
"""How what was exported before begins, and what it holds."""
_IN_BUNDLE = ("configs/metadata.json", "configs/inference.json", "models/model.safetensors", "docs/README.md")


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
        UserError: the student must be fitted first, the format cannot express it, a package is missing, or a file is
            there that is no such export.
    """
    source = Path(student.source)
    target = out or source.with_name(_TARGETS[to])
    _check_target(to, target)
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


def _check_target(to: str, target: Path) -> None:
    """Refuse to write over what is no such export; of a bundle its description tells.

    Raises:
        UserError: with the file that is in the way.
    """

    def is_one(path: Path) -> bool:
        content = path.read_bytes()
        begins, holds = _MARKS[to]
        # a student's file names itself too, and can begin with any byte
        return content.startswith(begins) and content[8:9] != b"{" and holds in content

    if to != "monai-bundle":
        check_replaceable(target, f"what --to {to} writes", is_one)
        return
    about = target / _IN_BUNDLE[0]
    ours = about.is_file() and b'"student"' in about.read_bytes()
    for name in _IN_BUNDLE:
        check_replaceable(target / name, "of a bundle of this command", lambda path: ours)


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
