"""What lies where in the folder of a federation on one machine, and the commands that it is made of.

OUT/coordinator/        the SuperLink: certificates, register of sites, start.sh (`server.deployment`)
OUT/hospitals/NAME/     data, key and private state of a hospital; its own file is configs/NAME.yaml
OUT/                    the study's run (docs/run_files.md)
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from dusss_core.errors import UserError
from feddusss import configfile
from server.deployment.folder import CoordinatorFolder
from server.deployment.run import on_any_folder
from server.study.config import StudyConfig, load_study
from server.study.deployment import DeploymentConfig

STUDY = "federation"
"""The preset."""
LOCK = "federation.lock"
"""Held by who works in the folder; also tells a folder that was made here from any other."""


@dataclass(frozen=True)
class Layout:
    """One federation: its folder, and the study that it runs."""

    out: Path
    """Absolute."""
    port: int
    """Of the SuperLink, on loopback."""
    study: StudyConfig
    overrides: tuple[str, ...]
    """Of the preset, with which `study` was read."""

    @property
    def coordinator(self) -> CoordinatorFolder:
        return CoordinatorFolder(self.out / "coordinator")

    @property
    def lock(self) -> Path:
        return self.out / LOCK

    @property
    def sites(self) -> list[str]:
        return list(_deployment(self.study).sites)

    def hospital(self, site: str) -> Path:
        """The folder of a hospital."""
        return self.out / "hospitals" / site

    def key(self, site: str) -> Path:
        """The private key of a hospital."""
        return self.hospital(site) / f"{site}.key"

    def site_arguments(self, site: str) -> list[str]:
        """What `python -m client` is given: the site's file, and --set for what the file says otherwise.

        Raises:
            UserError: there is no such file.
        """
        path = _site_file(site)
        values = configfile.read_yaml(path)
        arguments = ["--site", str(path)]
        for key, wanted in self._site_settings(site).items():
            given = _value(values, key)
            if isinstance(wanted, Path) and given is not None:
                given = (path.resolve().parent / str(given)).resolve()
            if given != wanted:
                arguments += ["--set", f"{key}={_as_yaml(str(wanted))}"]
        return arguments

    def run_arguments(self) -> list[str]:
        """What `python -m server run` is given."""
        arguments = [STUDY, "--coordinator", shown(self.coordinator.path)]
        if self.out != _default_out(self.study):
            arguments += ["--out", shown(self.out)]
        return arguments + self._settings()

    def command(self, *options: str) -> str:
        """`python -m server federation` for this federation, as a person would type it."""
        elsewhere = [] if self.out == _default_out(self.study) else ["--out", shown(self.out)]
        port = [] if self.port == _deployment(self.study).superlink_port else ["--port", str(self.port)]
        return shlex.join(["python", "-m", "server", "federation", *options, *elsewhere, *port, *self._settings()])

    def by_hand(self) -> str:
        """The lines to type in terminals of their own, and the one that gives them a study."""
        clients = [shlex.join(["python", "-m", "client", *self.site_arguments(site)]) for site in self.sites]
        lines = [shlex.quote(shown(self.coordinator.path / "start.sh")), *clients]
        study = shlex.join(["python", "-m", "server", "run", *self.run_arguments()])
        return "\n".join(["in a terminal each:", *(f"  {line}" for line in lines), "then a study:", f"  {study}"])

    def _settings(self) -> list[str]:
        return [part for override in self.overrides for part in ("--set", override)]

    def _site_settings(self, site: str) -> dict[str, Any]:
        return {
            "data.manifest": self.hospital(site) / "manifest.csv",
            "state_dir": self.hospital(site) / "state",
            "superlink.address": f"127.0.0.1:{self.port}",
            "superlink.root_certificates": self.coordinator.authority.certificate,
            "superlink.private_key": self.key(site),
        }


def lay_out(out: Path | None, port: int | None, overrides: Iterable[str] = ()) -> Layout:
    """The federation of the preset.

    Args:
        out: None: runs/federation.
        port: of the SuperLink; None: the preset's, which the hospitals' files name.

    Raises:
        UserError: not a valid study, or no port.
    """
    if port is not None and not 1 <= port <= 65535:
        raise UserError(f"--port {port}: not a port", "give a number from 1 to 65535")
    study = on_any_folder(load_study(STUDY, overrides))
    out = _default_out(study) if out is None else out.expanduser().resolve()
    return Layout(out, _deployment(study).superlink_port if port is None else port, study, tuple(overrides))


def shown(path: Path) -> str:
    """A path as a person would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _default_out(study: StudyConfig) -> Path:
    return (Path("runs") / study.study).resolve()


def _deployment(study: StudyConfig) -> DeploymentConfig:
    if study.deployment is None:
        raise UserError(f"{STUDY}: no section 'deployment'", "leave the preset's there")
    return study.deployment


def _site_file(site: str) -> Path:
    """Of the folder that a person works in, or of the installation."""
    for folder in (Path("configs"), Path(str(resources.files("configs")))):
        if (folder / f"{site}.yaml").is_file():
            return folder / f"{site}.yaml"
    raise UserError(
        f"configs/{site}.yaml: no such file", "write one like configs/site_a.yaml, or take the preset's sites"
    )


def _value(values: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = (values or {}).get(part)
    return values


def _as_yaml(text: str) -> str:
    return yaml.safe_dump(text, width=float("inf")).splitlines()[0]
