"""Checkpoints of a run: one safetensors file per round, and the final model of each phase.

checkpoints/PHASE-ROUND.safetensors    global model, server optimiser (names with `server/`), selection, totals, and
                                       under a wire that compresses the model that the sites hold (`reference/`);
                                       what stays at the sites and starts from public weights, as it starts (`layers/`)
checkpoints/vlm.safetensors            the final model of the pretrain phase
checkpoints/student.safetensors        the final model of the segment phase
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dusss_core.errors import UserError
from dusss_core.files import read_metadata, read_tensors, with_prefix, write_tensors
from dusss_core.phases import Phase

if TYPE_CHECKING:
    from torch import Tensor

_SERVER, _REFERENCE, _LAYERS = "server/", "reference/", "layers/"
_DAMAGED = "put it back from a backup; or move it away: --resume goes on after the checkpoint before it"
_LOST = "put it back from a backup; or start afresh with --force or another --out"


@dataclass
class Checkpoint:
    """The coordinator's state after a round (or the final model of a phase)."""

    phase: Phase
    round: int
    model: dict[str, Tensor]
    server: dict[str, Tensor] = field(default_factory=dict)
    """State of the server optimiser."""
    selection: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    """Sums over the phase's rounds so far: seconds, bytes_up, bytes_down, rounds."""
    ended: str = ""
    """Of a final model: why the phase ended."""
    last_round: int = 0
    """Of a final model: the last round that was trained."""
    reference: dict[str, Tensor] = field(default_factory=dict)
    """The model that the sites hold after the round, where it is not the global one; see `server.rounds.reference`."""
    layers: dict[str, Tensor] = field(default_factory=dict)
    """`dusss_core.training.Start.layers` of the phase."""


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, run_key: str, digest: str):
        self.folder = Path(folder)
        self._run_key = run_key
        self._digest = digest

    def save_round(self, checkpoint: Checkpoint, keep: int, best_round: int | None) -> None:
        """Write a round's checkpoint, then drop all but the last `keep` rounds and the best one.

        Raises:
            UserError: disk full or no permission; the checkpoints before are untouched.
        """
        self._write(self._path(checkpoint.phase, checkpoint.round), checkpoint)
        rounds = self.rounds(checkpoint.phase)
        for old in set(rounds[:-keep]) - {best_round}:
            self._path(checkpoint.phase, old).unlink(missing_ok=True)

    def save_final(self, checkpoint: Checkpoint) -> None:
        """Write the final model of a phase."""
        self._write(self.final_path(checkpoint.phase), checkpoint)

    def check(self) -> None:
        """See by one of the checkpoints whether they are of this run, its settings, and a release with the same ones.

        Raises:
            UserError: they are not.
        """
        for path in sorted(self.folder.glob("*.safetensors"), reverse=True):
            try:
                metadata = read_metadata(path)
            except UserError:
                continue  # whoever needs it will say so
            self._check_owner(path, metadata)
            return

    def rounds(self, phase: Phase) -> list[int]:
        """Rounds with a checkpoint, sorted."""
        pattern = re.compile(rf"{phase}-(\d+)\.safetensors")
        return sorted(int(m[1]) for path in self.folder.glob("*.safetensors") if (m := pattern.fullmatch(path.name)))

    def load_round(self, phase: Phase, round: int) -> Checkpoint:
        """The checkpoint of a round."""
        return self._read(self._path(phase, round))

    def latest(self, phase: Phase) -> Checkpoint | None:
        """The checkpoint of the last round that was saved."""
        rounds = self.rounds(phase)
        return self.load_round(phase, rounds[-1]) if rounds else None

    def final(self, phase: Phase) -> Checkpoint | None:
        """The final model of a phase that is over, else None."""
        path = self.final_path(phase)
        # what a later phase did since would have to be done again with the phase's own
        remedy = _LOST if phase == Phase.PRETRAIN else _DAMAGED
        return self._read(path, remedy) if path.is_file() else None

    def drop_final(self, phase: Phase) -> None:
        """Reopen a phase."""
        self.final_path(phase).unlink(missing_ok=True)

    def final_path(self, phase: Phase) -> Path:
        """Where the final model of a phase is."""
        return self.folder / f"{phase.network}.safetensors"

    def _path(self, phase: Phase, round: int) -> Path:
        return self.folder / f"{phase}-{round:04d}.safetensors"

    def _write(self, path: Path, checkpoint: Checkpoint) -> None:
        server = {f"{_SERVER}{name}": tensor for name, tensor in checkpoint.server.items()}
        reference = {f"{_REFERENCE}{name}": tensor for name, tensor in checkpoint.reference.items()}
        layers = {f"{_LAYERS}{name}": tensor for name, tensor in checkpoint.layers.items()}
        metadata = {
            "phase": checkpoint.phase,
            "round": str(checkpoint.round),
            "run_key": self._run_key,
            "config_digest": self._digest,
            "selection": json.dumps(checkpoint.selection),
            "totals": json.dumps(checkpoint.totals),
            "ended": checkpoint.ended,
            "last_round": str(checkpoint.last_round),
        }
        write_tensors(path, {**checkpoint.model, **server, **reference, **layers}, metadata, checked=True)

    def _check_owner(self, path: Path, metadata: Mapping[str, str]) -> None:
        if metadata.get("run_key") != self._run_key or metadata.get("config_digest") != self._digest:
            raise UserError(
                f"{path}: belongs to another run, to other settings, or to a release with other settings to choose",
                "go on with the release that began the run; or start afresh with --force or another --out",
            )

    def _read(self, path: Path, remedy: str = _DAMAGED) -> Checkpoint:
        try:
            tensors, metadata = read_tensors(path)
        except UserError as error:
            raise UserError(error.problem, remedy, error.code) from None
        self._check_owner(path, metadata)
        try:
            return Checkpoint(
                phase=Phase(metadata["phase"]),
                round=int(metadata["round"]),
                model=_model(tensors),
                server=with_prefix(tensors, _SERVER),
                reference=with_prefix(tensors, _REFERENCE),
                layers=with_prefix(tensors, _LAYERS),
                selection=json.loads(metadata["selection"]),
                totals=json.loads(metadata["totals"]),
                ended=metadata["ended"],
                last_round=int(metadata["last_round"]),
            )
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: its header is damaged ({error})", remedy) from None


def read_model(path: Path) -> dict[str, Tensor]:
    """The model in a checkpoint of any run, and nothing that is kept beside it."""
    return _model(read_tensors(path)[0])


def describe(model: Mapping[str, Tensor]) -> dict[str, Any]:
    """What of a model is shared: number of tensors, bytes, names."""
    return {
        "tensors": len(model),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in model.values()),
        "names": sorted(model),
    }


def _model(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith((_SERVER, _REFERENCE, _LAYERS))}
