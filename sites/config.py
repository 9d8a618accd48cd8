"""A site's own file: where its data lie, what it allows, where its private state is kept."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, field_validator, model_validator

from dusss_core.config import DEVICE, ObjectiveName, Strict
from dusss_core.errors import UserError
from dusss_core.files import write_text
from dusss_core.phases import Phase
from feddusss import configfile

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
SplitName = Literal["train", "val", "test"]


class DataConfig(Strict):
    """The site's pictures."""

    manifest: Path
    """CSV or Parquet file with one row per picture; see `dusss_core.manifest`."""
    made_by: str | None = None
    """How the manifest comes about, such as a command: what to do where it is missing."""
    label_fraction: float = Field(1.0, ge=0, le=1)
    """Share of the training masks that may be trained on, drawn by hash of the id; the rest count as
    unlabelled and serve to report the quality of pseudo-labels only. A smaller share is a subset of a larger
    one."""
    cache: bool = True
    """Keep the prepared pictures under `state_dir`/cache. Off: they are prepared in memory at every start."""


class SuperLinkConfig(Strict):
    """How to reach the coordinator."""

    address: str = Field(pattern=r"^[A-Za-z0-9_.:\[\]-]+:\d{1,5}$")
    """host:port of the coordinator."""
    root_certificates: Path | None = None
    """PEM file of the authority that signed the coordinator's certificate."""
    private_key: Path | None = None
    """This site's private key; its public half is registered at the coordinator."""
    insecure: bool = False
    """Neither encrypted nor authenticated; for trials with a coordinator on this machine only."""

    @model_validator(mode="after")
    def _insecure_on_loopback_only(self) -> SuperLinkConfig:
        host = self.address.rpartition(":")[0].strip("[]")
        if self.insecure and host not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError("insecure is for a coordinator on this machine only, and the address is another's")
        return self


class LimitsConfig(Strict):
    """What a study may ask of this site. No message from the coordinator can widen it."""

    studies: list[str] | None = None
    """Names of the studies that this site takes part in. null: any."""
    approval: bool = False
    """A person here approves each study, with its settings and partners, before anything is trained, evaluated or told
    (`python -m client studies`). The kits of `python -m server provision` ask for it."""
    objectives: list[ObjectiveName] | None = None
    """Methods of step 2 (`method.objective`) that a study may name here. null: any."""
    max_epochs_per_round: int = Field(5, ge=1)
    """Local passes over the training pictures per round, at most. The plain student of `method.judge_text`, which is
    trained once for a study, makes ten times as many at most."""
    max_steps_per_round: int | None = Field(None, ge=1)
    """Optimizer steps per round, at most, with those of a student of its own (`personal`). null: no limit."""
    max_private_epochs_per_round: float = Field(50, gt=0)
    """With `privacy.epsilon`: expected passes over the declared records per round, at most, so the study's
    `privacy.steps_per_round` times `privacy.sample_rate`, and times `privacy.views` where records have views. A step
    counts as one record at least."""
    phases: list[Phase] = Field(default=list(Phase))
    """Phases that this site trains in. An empty list: the site only evaluates."""
    splits: list[SplitName] = Field(default=["train", "val", "test"])
    """Splits of the manifest that a study may use; pictures of the others are not read."""
    text: bool = True
    """Sentences may be used. Off: as if the manifest had none."""
    labels: bool = True
    """Masks may be used, for training and for figures. Off: as if the manifest had none."""
    max_rounds: int = Field(1000, ge=1)
    """Rounds of a phase, at most."""
    max_picture_size: int = Field(1024, ge=32)
    """Height and width, in pixels, to which a study may ask for the pictures to be scaled or cut."""
    max_parameters_m: float = Field(500, gt=0)
    """Parameters of a study's network, in millions, without the text encoder."""
    text_encoders: list[str] = Field(default=["minilm"])
    """Text encoders that a study may name: one is read from this machine's disk, or fetched from a hub."""
    max_batch: int = Field(1024, ge=2)
    """Pictures of a step, and pictures that are evaluated at a time, at most."""
    max_learning_rate: float = Field(0.1, gt=0)
    """Peak learning rate of a phase, at most: a step that is large tells of the few pictures that it was made of."""
    min_records: int = Field(10, ge=1)
    """Pictures that a figure is a mean over, at least: a figure of fewer stays here, in `state_dir`/log.txt. Those
    with a finding count, where any has one."""
    min_labelled_per_step: int = Field(2, ge=1)
    """Labelled pictures of a step, at least, where a step has any."""
    max_evaluations_per_run: int = Field(20, ge=1)
    """Models that one run may have evaluated here, beside the validation of each round; a study asks for three."""
    kept_workbenches: int = Field(4, ge=1)
    """Studies, or settings of one, whose pictures and trainers are kept in memory between messages, at most."""
    max_memory_gb: float | None = Field(None, gt=0)
    """Main memory of the process that works on messages, in GB; `client.door.machine` says how it is held. null: no
    limit."""
    max_gpu_memory_gb: float | None = Field(None, gt=0)
    """Memory that this process may take on its CUDA device, in GB. null: no limit."""
    max_disk_gb: float | None = Field(None, gt=0)
    """Size of `state_dir`, in GB, beyond which nothing is written there but the audit log and log.txt; what cannot be
    kept is not done. null: no limit."""
    hours: str | None = None
    """HH:MM-HH:MM, local time, in which training may run; it may span midnight. A round that is not done when they
    end is broken off, and counts as not trained. null: always."""

    @field_validator("hours")
    @classmethod
    def _check_hours(cls, hours: str | None) -> str | None:
        time = r"(?:[01]\d|2[0-3]):[0-5]\d"
        if hours is not None and not re.fullmatch(f"{time}-{time}", hours):
            raise ValueError('hours are "HH:MM-HH:MM", such as "20:00-06:00"')
        if hours is not None and hours[:5] == hours[6:]:
            raise ValueError("hours that end when they begin are none: null is always, and phases: [] never trains")
        return hours


class PrivacyConfig(Strict):
    """Differential privacy of what leaves the site; docs/privacy.md says what it covers."""

    epsilon: float | None = Field(None, gt=0, le=100)
    """Budget of one patient over all studies. null: no differential privacy."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Probability that the guarantee may fail; well below one over the number of training pictures. Fixed at first
    use."""
    cohort: str = Field("all", pattern=NAME_PATTERN)
    """Name of the group of patients whose budget this is. Fixed at first use: another cohort needs a `state_dir` of its
    own, and no patient may be in both."""
    records: int | None = Field(None, ge=1, le=10**8)
    """Declared number of training pictures: what the coordinator is told in place of the true one, and what sums over
    pictures are divided by. Any number is safe; one near the true number trains best."""
    records_per_patient: int = Field(1, ge=1, le=100)
    """k: most training pictures that one patient has. Epsilon and delta hold for all of them together."""

    @model_validator(mode="after")
    def _a_private_site_declares_its_size(self) -> PrivacyConfig:
        if self.epsilon is not None and self.records is None:
            raise ValueError(
                "'records' must be given with 'epsilon': the number of training pictures, roughly, which the "
                "coordinator is told instead of the true one"
            )
        return self


class SecureAggregationConfig(Strict):
    """Updates go into sums alone, so that the coordinator does not see this site's; docs/secure_aggregation.md."""

    peers: Path
    """The other sites' public keys, a line each: name of the site and its key, as in its OpenSSH .pub file. They must
    not come from the coordinator: compare their fingerprints with the other hospitals by another way. A line for this
    site itself may be there."""
    required: bool = True
    """Decline to train for a study that does not sum securely."""
    threshold: int | None = Field(None, ge=2)
    """Fewest sites, this one included, whose sum may be known. null: more than two thirds of all sites in `peers`."""
    key: Path | None = None
    """This site's private key; null: superlink.private_key."""


class SiteConfig(Strict):
    """One hospital. Paths in the file are relative to the file."""

    site: str = Field(pattern=NAME_PATTERN)
    """Name of the site, as it appears in reports."""
    data: DataConfig
    """The pictures."""
    state_dir: Path
    """Private folder: teacher, optimizer state, caches, ledger, audit log. Nothing in it leaves the site."""
    superlink: SuperLinkConfig | None = None
    """The coordinator. null: simulation only."""
    limits: LimitsConfig = LimitsConfig()
    """What a study may ask of this site."""
    privacy: PrivacyConfig = PrivacyConfig()
    """Differential privacy."""
    secure_aggregation: SecureAggregationConfig | None = None
    """Secure aggregation. null: the site takes part in no study that asks for it."""
    device: str = Field("auto", pattern=DEVICE)
    """auto (a GPU where there is one), cpu, cuda, cuda:N or mps."""
    threads: int | None = Field(None, ge=1, le=1024)
    """Processor cores that `python -m client` trains on. Processes that train side by side and each take all cores slow
    each other down many times. null: all of them."""

    @field_validator("state_dir", mode="before")
    @classmethod
    def _a_folder_has_a_name(cls, folder: object) -> object:
        if folder == "":
            raise ValueError("an empty name would be the file's own folder, which others may look into: name another")
        return folder


def load_site(path: Path, overrides: Iterable[str] = ()) -> SiteConfig:
    """Read a site's file; relative paths in it, and in `overrides`, are taken from the file's folder.

    Returns:
        The config, with absolute paths.

    Raises:
        UserError: as `feddusss.configfile.load`; there is no manifest, and the file says how it is made.
    """
    site = _resolved(configfile.load(SiteConfig, path, overrides), Path(path).resolve().parent)
    if site.data.made_by is not None and not site.data.manifest.exists():
        raise UserError(f"{path}: {site.data.manifest} is not there yet", f"it is made by: {site.data.made_by}")
    return site


def write_site(
    folder: Path,
    site: str,
    *,
    evaluates_only: bool = False,
    text_encoder: str | None = None,
    simulated: bool = False,
    max_epochs: int | None = None,
) -> Path:
    """Write `folder`/site.yaml for the manifest.csv beside it; private state goes to `folder`/state.

    Args:
        evaluates_only: the site trains in no phase.
        text_encoder: the one text encoder that a study may name; None: the default.
        simulated: both sides are on one machine, and a toy's site may have few pictures: its figures are told all the
            same.
        max_epochs: `limits.max_epochs_per_round`; None: the default.

    Returns:
        The file.
    """
    limits = {
        **({"phases": []} if evaluates_only else {}),
        **({"text_encoders": [text_encoder]} if text_encoder else {}),
        **({"min_records": 1, "min_labelled_per_step": 1} if simulated else {}),
        **({"max_epochs_per_round": max_epochs} if max_epochs else {}),
    }
    values = {
        "site": site,
        "data": {"manifest": "manifest.csv"},
        "state_dir": "state",
        **({"limits": limits} if limits else {}),
    }
    write_text(folder / "site.yaml", yaml.safe_dump(values, sort_keys=False))
    return folder / "site.yaml"


def _resolved(config: Strict, folder: Path) -> Strict:
    """A copy of `config` in which every path, at any depth, is absolute."""
    changed = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Path):
            changed[name] = (folder / value.expanduser()).resolve()
        elif isinstance(value, Strict):
            changed[name] = _resolved(value, folder)
    return config.model_copy(update=changed)
