"""The study file: what is trained (`TrainingConfig`, which the sites see), how it is federated, how it is simulated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import model_validator

from dusss_core.commandline import at_home
from dusss_core.config import VLM, Strict, TrainingConfig
from dusss_core.errors import UserError
from dusss_core.objectives import misfit
from dusss_core.phases import Phase
from feddusss import __version__, configfile
from feddusss.terms import Terms
from server.study.deployment import DeploymentConfig
from server.study.federation import FederationConfig
from server.study.output import OutputConfig
from server.study.simulation import SimulationConfig


class DataConfig(Strict):
    """Where data sets lie."""

    root: str = "data"
    """Folder of the data sets, relative to the current folder. Data presets name folders inside it."""


class StudyConfig(TrainingConfig):
    """A whole study."""

    federation: FederationConfig = FederationConfig()
    data: DataConfig = DataConfig()
    simulation: SimulationConfig | None = None
    """Where the sites come from when all are simulated on one machine."""
    deployment: DeploymentConfig | None = None
    """How real hospitals reach the coordinator."""
    output: OutputConfig = OutputConfig()
    """Where figures go beside the run's folder."""

    @model_validator(mode="after")
    def _prox_through_the_strategy(self) -> StudyConfig:
        if self.prox_mu:
            raise ValueError("prox_mu is set by the strategy; use federation.strategy: fedprox and federation.mu")
        return self

    @model_validator(mode="after")
    def _the_tower_is_whole(self) -> StudyConfig:
        if self.student.weights == VLM and self.local_norm:
            raise ValueError(
                "student.weights: vlm with local_norm: the coordinator never has the tower's normalisation layers, "
                "which stay at the sites"
            )
        return self

    @model_validator(mode="after")
    def _the_student_can_take_the_tower(self) -> StudyConfig:
        if self.student.weights == VLM and self.student.encoder != self.vlm.image_encoder:
            raise ValueError(
                f"student.weights: vlm with student.encoder: {self.student.encoder} and vlm.image_encoder: "
                f"{self.vlm.image_encoder}: they must be the same network"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits_the_network(self) -> StudyConfig:
        if reason := misfit(self):
            raise ValueError(reason)
        return self

    def training(self) -> TrainingConfig:
        """What the sites are sent: without federation and simulation, and without paths of this machine."""
        values = self.model_dump(include=set(TrainingConfig.model_fields))
        if self.federation.strategy == "fedprox":
            values["prox_mu"] = self.federation.mu
        # they come with the first global model, and a site reads no file that a message names
        values["vlm"]["weights"] = values["student"]["weights"] = None
        return TrainingConfig.model_validate(values)

    def terms(self, partners: Mapping[str, str]) -> Terms:
        """What the sites are told beside it: release, partners, and what becomes of an update."""
        told = self.federation.model_dump(mode="json", exclude=set(_TIMES))
        changed = self.federation.model_dump(mode="json", exclude_defaults=True)
        # at its default a setting that a later release brings is not told, so that an approval goes on to cover it
        values = {key: value for key, value in told.items() if key in _ALWAYS_TOLD or key in changed}
        return Terms(release=__version__, partners=dict(partners), federation=configfile.flat(values))

    def phases(self) -> dict[Phase, int]:
        """Rounds by phase, in order; no pretraining where neither its masks nor its image tower would be used."""
        pretrained = self.method.text_mask or self.student.weights == VLM
        wanted = [phase for phase in Phase if pretrained or not phase.reads_sentences]
        return {phase: phase.settings(self).rounds for phase in wanted}


_TIMES = ("round_timeout_s", "start_timeout_s", "retries", "keep_checkpoints", "sites")
"""Settings of `federation` that change nothing of what is trained or sent; `sites` are the partners."""
_ALWAYS_TOLD = ("strategy", "weighting", "min_sites", "secure_aggregation", "wire", "select")


def load_study(path_or_preset: str | Path, overrides: Iterable[str] = ()) -> StudyConfig:
    """Read a study file, or the installed preset of that name ("demo").

    Raises:
        UserError: no such file or preset, or not a valid study.
    """
    return configfile.load(StudyConfig, find_study(path_or_preset), overrides)


def find_study(path_or_preset: str | Path) -> Path:
    """The path of a study file: as given, or among the installed presets (`demo`, `demo.yaml`, `configs/demo.yaml`)."""
    path = at_home(Path(path_or_preset))
    if path.is_file():
        return path.resolve()
    folder = Path(str(resources.files("configs")))
    preset = folder / f"{path.stem}.yaml"
    if preset.is_file() and not _is_a_sites(preset) and path.parent in (Path(), Path("configs")):
        return preset
    known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml") if not _is_a_sites(file))) or "none"
    raise UserError(f"{path_or_preset}: no such study file", f"give a path, or one of the presets: {known}")


def _is_a_sites(preset: Path) -> bool:
    """configs/ also holds files of hospitals: site_a.yaml, ..."""
    return preset.stem.startswith("site_")


RESUMABLE = {
    "pretrain.rounds", "segment.rounds", "pretrain.batch", "segment.batch", "runtime.eval_batch",
    "federation.keep_checkpoints", "federation.round_timeout_s", "federation.min_sites", "federation.retries",
    "federation.start_timeout_s", "federation.secure_threshold", "federation.sites", "simulation.workers",
}  # fmt: skip
"""Keys that may change when a study is resumed; `deployment` and `output`, by which nothing is trained, may too."""
FORMER_DEFAULTS: dict[str, Any] = {}
"""Dotted key -> the default that an older release had, where a later one has another. `study_digest` takes that value
for unset, so that runs which were begun with it go on."""


def changed_keys(before: StudyConfig, now: StudyConfig) -> list[str]:
    """Dotted keys whose values differ, without those that may change on resume."""
    old, new = (configfile.flat(study.model_dump(mode="json")) for study in (before, now))
    return sorted(key for key in old.keys() | new.keys() if not _may_change(key) and old.get(key) != new.get(key))


def study_digest(study: StudyConfig) -> str:
    """SHA-256 of the settings that may not change while a study runs, and that are not the default: a setting that a
    later release brings does not count as long as nobody sets it."""
    changed = configfile.flat(study.model_dump(mode="json", exclude_defaults=True))
    every = configfile.flat(study.model_dump(mode="json"))
    values = changed | {key: every[key] for key in FORMER_DEFAULTS if key in every}
    kept = {
        key: value
        for key, value in values.items()
        if not _may_change(key) and not (key in FORMER_DEFAULTS and value == FORMER_DEFAULTS[key])
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _may_change(key: str) -> bool:
    return key in RESUMABLE or key.split(".")[0] in ("deployment", "output")
