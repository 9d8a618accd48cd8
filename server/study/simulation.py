"""The `simulation` part of a study file: where the simulated sites' data come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from dusss_core.commandline import at_home
from dusss_core.config import DEVICE, Strict
from sites.partition import PartitionConfig
from sites.synth.config import SynthConfig

Device = Annotated[str, Field(pattern=DEVICE)]


class SourceConfig(Strict):
    """The data that the simulated sites share among them."""

    kind: Literal["synth", "manifest", "lvit", "sites"] = "synth"
    """synth: synthetic hospitals. manifest: one manifest, divided by `partition`. lvit: a folder in the layout of
    LViT (QaTa-COV19, MoNuSeg), divided by `partition`. sites: a folder of sites, as `python -m sites partition` writes
    it: NAME/site.yaml, each with its manifest."""
    synth: SynthConfig = Field(default_factory=SynthConfig)
    """For kind: synth."""
    path: Path | None = None
    """The manifest, the LViT folder, or the folder of sites; relative to `data.root`."""
    columns: Path | None = None
    """kind: lvit: a table with further columns (hospital, patient, ...); relative to `data.root`."""
    key: str | None = None
    """kind: lvit: column of that table that names the picture."""
    extract: dict[str, str] = Field(default_factory=dict)
    """kind: lvit: column -> regular expression on the picture's name; its first group is the column's value."""
    text_column: str | None = None
    """kind: manifest: use this column as the sentence instead of `text`."""

    @field_validator("path", "columns")
    @classmethod
    def _at_home(cls, path: Path | None) -> Path | None:
        return path and at_home(path)

    @model_validator(mode="after")
    def _path_where_needed(self) -> SourceConfig:
        if (self.kind == "synth") == (self.path is not None):
            raise ValueError(f"kind: {self.kind} " + ("takes no path" if self.path else "needs a path"))
        if self.kind != "lvit" and (self.columns or self.key or self.extract):
            raise ValueError("columns, key and extract go with kind: lvit")
        if self.kind != "manifest" and self.text_column:
            raise ValueError("text_column goes with kind: manifest")
        return self

    @model_serializer(mode="wrap")
    def _what_is_read(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A run on one's own pictures does not record three hospitals that nobody meant."""
        values = serialise(self)
        if self.kind != "synth":
            values.pop("synth", None)
        return values


class SimulatedPrivacyConfig(Strict):
    """The budget that is written into the file of each simulated site that trains; docs/privacy.md says what it means.

    What follows is a hospital's: its client, its ledger, its refusals. The study's `privacy.noise_multiplier`, where it
    is not given, is planned so that all rounds fit.
    """

    epsilon: float | None = Field(None, gt=0, le=100)
    """Budget of one patient at each site. null: none, but the pictures that one would leave, to compare with."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Probability that the guarantee may fail."""
    records: int | None = Field(None, ge=1, le=10**8)
    """Declared number of training pictures of every site. null: what each site's manifest holds; a hospital declares a
    number once and for all, and does not count anew."""
    records_per_patient: int = Field(1, ge=1, le=100)
    """k. Of a patient with more training pictures, k stay in the site's manifest, labelled ones first: a hospital that
    declares k has to choose as well."""


class SimulationConfig(Strict):
    """How a study is simulated on one machine."""

    data: SourceConfig = Field(default_factory=SourceConfig)
    """The data."""
    partition: PartitionConfig | None = None
    """How one data set becomes sites; not for synthetic hospitals, which are sites already."""
    privacy: SimulatedPrivacyConfig | None = None
    """Differential privacy at every simulated site that trains; null: none."""
    seed: int | None = None
    """Of synthetic data and partition; null: the study's seed."""
    device: Device | list[Device] = "auto"
    """Device of every simulated site; of a list each site has one, in turn. auto: a GPU where there is one, and where
    there are several, each site has one, in turn. With `workers` the GPUs work side by side."""
    threads: int | None = Field(None, ge=1, le=1024)
    """Threads of torch, in each worker; null: as torch chooses."""
    workers: int = Field(1, ge=1)
    """Sites that work at a time, each in a process of its own; with 1 they take turns in this process. Changes no bit
    of the result, as long as `threads` is set."""

    @model_validator(mode="after")
    def _some_device(self) -> SimulationConfig:
        if not self.device:
            raise ValueError("device: an empty list is no device")
        return self

    @model_validator(mode="after")
    def _partition_where_needed(self) -> SimulationConfig:
        if self.data.kind in ("synth", "sites") and self.partition is not None:
            raise ValueError(f"partition does not go with kind: {self.data.kind}, whose hospitals are the sites")
        return self
