"""The study file: what is trained (`TrainingConfig`, which the sites see), how it is federated, how it is simulated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from dusss_core.config import Strict, TrainingConfig
from dusss_core.errors import UserError
from feddusss import configfile

PHASES = ("pretrain", "segment")
"""In the order in which they run."""
MEANS = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi")
"""Strategies that use the weighted mean of the updates and nothing else of them."""


class FederationConfig(Strict):
    """How the sites' models become one, and when a phase ends."""

    strategy: Literal["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg", "krum"] = (
        "fedavg"
    )
    """fedavg: weighted mean. fedprox: the same, and sites are held near the global model by `mu`. fedavgm, fedadam,
    fedyogi: the mean update is a gradient for a server optimiser. fedmedian, fedtrimmedavg, krum: robust to sites
    that send garbage; unweighted."""
    mu: float = Field(0.01, gt=0)
    """fedprox: weight of half the squared distance from the round's global model."""
    server_lr: float = Field(1.0, gt=0)
    """fedavgm: server learning rate; fedadam, fedyogi: eta (0.01 is a usual value there)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """fedavgm: server momentum."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """fedadam, fedyogi: decay of the first moment."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """fedadam, fedyogi: decay of the second moment."""
    tau: float = Field(1e-3, gt=0)
    """fedadam, fedyogi: degree of adaptivity, added to the root of the second moment."""
    trim: float = Field(0.2, gt=0, lt=0.5)
    """fedtrimmedavg: share of the sites that is cut off at each end, for each number on its own."""
    byzantine: int = Field(0, ge=0)
    """krum: how many sites may be faulty; needs at least 2 * byzantine + 3 sites."""
    weighting: Literal["examples", "uniform"] = "examples"
    """A site's weight in the mean: its number of training pictures, or the same for all."""
    min_sites: int = Field(1, ge=1)
    """A round with fewer accepted replies fails. In pretraining, sites without sentences send none that counts."""
    retries: int = Field(2, ge=0)
    """How often a round with too few answers asks those sites again that were lost (no answer, a crash). Answers that
    are there already are kept."""
    max_norm_ratio: float | None = Field(10, gt=1)
    """An update whose norm is more than this many times the median of the other sites' is refused (a site with more
    pictures than the others is given as many times more room). Needs three answers. null: not compared."""
    secure_aggregation: bool = False
    """The coordinator sees sums of the sites' updates, and no site's own; docs/secure_aggregation.md says what that
    promises. Goes with strategies that need the mean alone, and without `max_norm_ratio`."""
    secure_threshold: int | None = Field(None, ge=2)
    """secure_aggregation: fewest sites whose sum may be known; more than half of those that take part in a round. null:
    more than two thirds of the training sites."""
    wire: Literal["float32", "bfloat16"] = "float32"
    """Type in which learned weights travel, both ways; bfloat16 halves the bytes and rounds by at most 0.2 %. The
    coordinator's own model, its checkpoints and the final model stay float32. With secure_aggregation updates go up as
    64-bit integers, whatever this says."""
    select: Literal["best", "last"] = "best"
    """Which round's model ends a phase: the best by validation (pictures weigh the same), or the last."""
    keep_checkpoints: int = Field(3, ge=1)
    """Rounds of each phase whose checkpoints stay on disk, besides the best and the final model."""
    round_timeout_s: float = Field(3600, gt=0)
    """Sites that have not answered after this many seconds are left out of the round."""
    start_timeout_s: float = Field(600, gt=0)
    """How long to wait for the sites when a study starts, and when too few are connected for a round."""
    sites: list[str] | None = None
    """Names of the sites that may take part; the study starts when all are there. null: whoever is there."""

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_single_updates_are_not_seen(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("secure_aggregation") is True:
            return {"max_norm_ratio": None, **values}
        return values

    @model_validator(mode="after")
    def _sums_alone_are_enough(self) -> FederationConfig:
        if not self.secure_aggregation:
            return self
        if self.strategy not in MEANS:
            raise ValueError(
                f"secure_aggregation with strategy {self.strategy}, which compares the updates of single sites: choose "
                f"one that needs their mean alone ({', '.join(MEANS)}), or do without secure_aggregation"
            )
        if self.max_norm_ratio is not None:
            raise ValueError(
                "secure_aggregation with max_norm_ratio, which compares the sizes of single updates: set it to null, "
                "or do without secure_aggregation"
            )
        return self


class DataConfig(Strict):
    """Where data sets lie."""

    root: str = "data"
    """Folder of the data sets, relative to the current folder. Data presets name folders inside it."""


class StudyConfig(TrainingConfig):
    """A whole study."""

    federation: FederationConfig = FederationConfig()
    data: DataConfig = DataConfig()
    simulation: dict[str, Any] | None = None
    """Where the sites come from when all are simulated on one machine: `server.study.simulation.SimulationConfig`.
    A plain mapping here, because its types are the hospitals' and the coordinator has no part in those."""
    deployment: dict[str, Any] | None = None
    """How real hospitals reach the coordinator: `server.study.deployment.DeploymentConfig`."""

    @model_validator(mode="after")
    def _prox_through_the_strategy(self) -> StudyConfig:
        if self.prox_mu:
            raise ValueError("prox_mu is set by the strategy; use federation.strategy: fedprox and federation.mu")
        return self

    @model_validator(mode="after")
    def _weights_reach_every_site(self) -> StudyConfig:
        for name, part in (("vlm", self.vlm), ("student", self.student)):
            if part.weights is not None and self.local_norm:
                raise ValueError(f"{name}.weights with local_norm: their normalisation layers would reach no site")
        return self

    def training(self) -> TrainingConfig:
        """What the sites are sent: without federation and simulation, and without paths of this machine."""
        values = self.model_dump(include=set(TrainingConfig.model_fields))
        if self.federation.strategy == "fedprox":
            values["prox_mu"] = self.federation.mu
        # they are in the first global model, and a site reads no file that a message names
        values["vlm"]["weights"] = values["student"]["weights"] = None
        return TrainingConfig.model_validate(values)

    def phases(self) -> dict[str, int]:
        """Rounds by phase, in order; no pretraining where its masks would not be used."""
        rounds = {"pretrain": self.pretrain.rounds} if self.method.text_mask else {}
        return {**rounds, "segment": self.segment.rounds}


def load_study(path_or_preset: str | Path, overrides: Iterable[str] = ()) -> StudyConfig:
    """Read a study file, or the installed preset of that name ("demo").

    Raises:
        UserError: no such file or preset, or not a valid study.
    """
    path = find_study(path_or_preset)
    study = configfile.load(StudyConfig, path, overrides)
    if study.simulation is not None:
        _check_simulation(study.simulation, str(path))
    if study.deployment is not None:
        _check_deployment(study.deployment, str(path))
    return study


def find_study(path_or_preset: str | Path) -> Path:
    """The path of a study file: as given, or among the installed presets (`demo`, `demo.yaml`, `configs/demo.yaml`)."""
    path = Path(path_or_preset)
    if path.is_file():
        return path.resolve()
    folder = Path(str(resources.files("configs")))
    preset = folder / f"{path.stem}.yaml"
    if preset.is_file() and path.parent in (Path(), Path("configs")):
        return preset
    known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
    raise UserError(f"{path_or_preset}: no such study file", f"give a path, or one of the presets: {known}")


RESUMABLE = {
    "pretrain.rounds", "segment.rounds", "federation.keep_checkpoints", "federation.round_timeout_s",
    "federation.min_sites", "federation.retries", "federation.start_timeout_s", "federation.secure_threshold",
    "simulation.workers",
}  # fmt: skip
"""Keys that may change when a study is resumed."""


def changed_keys(before: StudyConfig, now: StudyConfig) -> list[str]:
    """Dotted keys whose values differ, without those that may change on resume."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    return sorted(key for key in old.keys() | new.keys() if key not in RESUMABLE and old.get(key) != new.get(key))


def study_digest(study: StudyConfig) -> str:
    """SHA-256 of the settings that may not change while a study runs."""
    values = {key: value for key, value in _flat(study.model_dump(mode="json")).items() if key not in RESUMABLE}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, Mapping) and values:
        return {k: v for key, inner in values.items() for k, v in _flat(inner, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): values}


def _check_simulation(values: Mapping[str, Any], source: str) -> None:
    from server.study.simulation import parse_simulation

    parse_simulation(values, source)


def _check_deployment(values: Mapping[str, Any], source: str) -> None:
    from server.study.deployment import parse_deployment

    parse_deployment(values, source)
