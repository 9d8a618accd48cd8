"""The first weights of a phase, drawn in a process of its own: python -m server.deployment.initial STUDY PHASE FILE

The package of the image encoders, and what that brings, take 120 MB, and a coordinator needs them for this alone:
afterwards it adds up tensors, in a process that lives for days.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dusss_core.errors import UserError
from dusss_core.files import read_tensors, with_prefix, write_tensors
from dusss_core.phases import Phase
from server.study.config import StudyConfig, load_study

if TYPE_CHECKING:
    from torch import Tensor

    from dusss_core.training import Start

_ORDER = "order"
"""Of the names, which a file of tensors does not keep: those that travel have that of the network."""
_LAYERS = "layers/"
"""Before the names of those that stay at the sites."""


def first_weights(folder: Path, study: StudyConfig, phase: Phase, vlm: Mapping[str, Tensor] | None) -> Start:
    """As `dusss_core.training.start_of`, bit for bit.

    Args:
        folder: of the run, whose config.yaml is `study`.

    Raises:
        UserError: as `start_of`.
    """
    if _needs_an_encoder(study, phase):
        file = folder / f".first-{phase}.tmp"
        command = [sys.executable, "-m", __name__, str(folder / "config.yaml"), str(phase), str(file)]
        try:
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return _read(file)
        except (OSError, UserError):
            pass  # here what is wrong is told as ever
        finally:
            with suppress(OSError):
                file.unlink(missing_ok=True)
    from dusss_core.training import start_of

    return start_of(study, phase, vlm)


def main(argv: Sequence[str]) -> None:
    """Write the weights of a phase to a file."""
    from dusss_core.training import start_of

    study, phase, file = argv
    start = start_of(load_study(study), Phase(phase))
    layers = {f"{_LAYERS}{name}": value for name, value in start.layers.items()}
    write_tensors(Path(file), {**start.shared, **layers}, {_ORDER: json.dumps(list(start.shared))})


def _read(file: Path) -> Start:
    from dusss_core.training import Start

    tensors, about = read_tensors(file)
    return Start({name: tensors[name] for name in json.loads(about[_ORDER])}, with_prefix(tensors, _LAYERS))


def _needs_an_encoder(study: StudyConfig, phase: Phase) -> bool:
    """Whether the phase's network has one, and starts from the settings alone."""
    return phase == Phase.PRETRAIN or (study.student.encoder is not None and study.student.weights != "vlm")


if __name__ == "__main__":
    main(sys.argv[1:])
