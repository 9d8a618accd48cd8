"""A student's file: safetensors with all weights, and in its header what it takes to use them. Never pickle.

    __metadata__: {"feddusss.student": About as JSON, "format": "pt"}
    tensors       parameters and buffers of the network that is deployed, complete

Decoders that a method compares with the main one are no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from dusss_core.config import Strict, TrainingConfig
from dusss_core.errors import UserError
from dusss_core.files import digest_of_tensors, read_tensors, write_tensors
from dusss_core.student.about import About, Layers

if TYPE_CHECKING:
    from torch import Tensor

KEY = "feddusss.student"
PERSONAL, VLM = ".personal", ".vlm"
"""What the names of files end with that lie beside a student's."""
Header = TypeVar("Header", bound=Strict)
_OTHERS = ("others.", "pixel_heads.", "second.")
"""Parts of a student that only training needs."""
_MOST_NAMES = 3


def whole_student(
    config: TrainingConfig, tensors: Mapping[str, Tensor], layers: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The weights of the network that is deployed: those given, without the decoders of `config`'s method.

    Normalisation layers that are not given (FedBN: the coordinator has none) are as the study starts from.

    Args:
        layers: those of a study that starts from public weights (`dusss_core.training.Start.layers`).

    Raises:
        UserError: tensors that are not this student's, or lack others than normalisation layers.
    """
    from dusss_core.build import build_student
    from dusss_core.models.weights import local_tensors

    deployed = About.of(config, layers="shared").config().model_copy(update={"seed": config.seed})
    model = build_student(deployed)
    norms = local_tensors(model, config.local_norm)
    given = {name: value for name, value in {**(layers or {}), **tensors}.items() if not name.startswith(_OTHERS)}
    whole = {**norms, **given}
    check_fit(f"the student of study '{config.study}'", model.state_dict(), whole)
    return whole


def layers_without_a_site(config: TrainingConfig) -> Layers:
    """Whose normalisation layers `whole_student` gives of what the coordinator has."""
    if not config.local_norm:
        return "shared"
    from dusss_core.build import build_student
    from dusss_core.training.statistics import has_statistics

    return "unfitted" if has_statistics(build_student(config)) else "initial"


def write_student(path: Path, about: About, tensors: Mapping[str, Tensor]) -> None:
    """Write a student's file atomically.

    Args:
        about: its digest of the weights is set here.
        tensors: as `whole_student` gives them.

    Raises:
        UserError: disk full or no permission.
    """
    about = about.model_copy(update={"tensors": digest_of_tensors(tensors)})
    write_tensors(path, tensors, {KEY: about.model_dump_json(), "format": "pt"})


def personal_path(student: Path | str) -> Path:
    """Where the student lies that a site has of its own (`personal`): beside the one that all trained."""
    student = Path(student)
    return student.with_name(f"{student.stem}{PERSONAL}{student.suffix}")


def students_in(folder: Path) -> list[Path]:
    """The students that all trained, as a site has them, without what lies beside each."""
    return [file for file in folder.glob("*.safetensors") if not file.stem.endswith((PERSONAL, VLM))]


def read_student(path: Path | str) -> tuple[About, dict[str, Tensor]]:
    """A student's file, checked: its header, and its weights against the digest there.

    Raises:
        UserError: missing, not safetensors, no student's file, of another release, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder", f"name the file in it: {path / 'student.safetensors'}")
    tensors, metadata = read_tensors(path)
    if KEY not in metadata:
        kind = "a checkpoint of a run" if "config_digest" in metadata else "weights alone, or another program's file"
        raise UserError(
            f"{path}: not a student's file but {kind}: it does not say how it is used",
            "use student.safetensors of the run's folder, or the file that the run wrote at your site",
        )
    return checked_header(About, metadata[KEY], tensors, path), tensors


def checked_header(kind: type[Header], text: str, tensors: Mapping[str, Tensor], path: Path) -> Header:
    """The header of a finished model's file, whose `tensors` is the digest of the file's weights.

    Args:
        kind: its schema.

    Raises:
        UserError: of another release, or the weights are damaged or no numbers: every mask would be empty.
    """
    try:
        about = kind.model_validate_json(text)
        about.config()  # what fits alone may not fit together
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "header"
        raise UserError(
            f"{path}: its header is not one of this release: '{where}': {first['msg']}",
            "use the release of feddusss that wrote it, or a newer one",
        ) from None
    if digest_of_tensors(tensors) != about.tensors:
        raise UserError(f"{path}: its weights are not those that were written", "copy the file again")
    wrong = sorted(n for n, value in tensors.items() if value.is_floating_point() and not value.isfinite().all())
    if wrong:
        raise UserError(
            f"{path}: its weights are not all finite: {_some(wrong)}", "use a file of another round or training"
        )
    return about


def check_fit(what: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of a network: one too few, one too many, another shape or type of weights.

    Raises:
        UserError: with the first few names.
    """
    both = own.keys() & given.keys()
    problems = {
        "lacks": sorted(own.keys() - given.keys()),
        "has no place for": sorted(given.keys() - own.keys()),
        "has another shape of": sorted(n for n in both if own[n].shape != given[n].shape),
        # a half or a whole number in its place would be turned into one without a word
        "has another type of": sorted(n for n in both if own[n].is_floating_point() and own[n].dtype != given[n].dtype),
    }
    told = [f"{kind} {_some(names)}" for kind, names in problems.items() if names]
    if told:
        raise UserError(
            f"{what}: its weights do not fit its network: it {'; '.join(told)}",
            "use the file that the run wrote last (student.safetensors in its folder)",
        )


def check_network(config: TrainingConfig, tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that are not those of the student that `config` builds, before it is built: a header can name a
    network that no memory holds.

    Raises:
        UserError: as `check_fit`; or there is no such network.
    """
    import torch

    from dusss_core.build import build_student

    try:
        with torch.device("meta"):  # shapes alone
            own = build_student(config).state_dict()
    except (RuntimeError, OverflowError) as error:
        raise UserError(
            f"{source}: its header names a network that cannot be built: {str(error).splitlines()[0]}",
            "use the file that the run wrote last (student.safetensors in its folder)",
        ) from None
    check_fit(source, own, tensors)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more tensors" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
