"""What lies where in the coordinator's folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dusss_core.errors import UserError
from server.deployment.accounts import check_account
from server.deployment.certificates import Authority, ServerPair

CONNECTION = "coordinator"
"""Name of the loopback connection in flwr/config.toml."""


@dataclass(frozen=True)
class CoordinatorFolder:
    """The coordinator's folder: keys, register of sites, SuperLink. Only its owner can enter."""

    path: Path

    @property
    def authority(self) -> Authority:
        return Authority(self.path / "ca.key", self.path / "ca.crt")

    @property
    def server(self) -> ServerPair:
        return ServerPair(self.path / "server.key", self.path / "server.crt")

    @property
    def flwr_home(self) -> Path:
        """FLWR_HOME of every Flower command of the coordinator."""
        return self.path / "flwr"

    @property
    def register(self) -> Path:
        """The hospitals and their public keys; see `server.deployment.registry`."""
        return self.path / "sites.json"

    @property
    def generated(self) -> Path:
        """Digests of the text files that `provision` wrote, to tell those that a person has changed since."""
        return self.path / "generated.json"


def open_folder(path: Path) -> CoordinatorFolder:
    """The coordinator's folder that `provision` made.

    Raises:
        UserError: there is none at `path`; it is another account's.
    """
    folder = CoordinatorFolder(Path(path).expanduser().absolute())
    check_account(folder.path)
    if not folder.register.exists():
        raise UserError(
            f"{path}: no coordinator's folder (it has no sites.json)",
            "name it with --coordinator, or make it: python -m server provision STUDY",
        )
    return folder


def check_plain(path: Path) -> None:
    """Refuse a path that a shell, systemd and nginx would each want quoted in another way.

    Raises:
        UserError: it holds a blank or another sign with a meaning.
    """
    if not re.fullmatch(r"[A-Za-z0-9/._+-]+", str(path)):
        raise UserError(
            f"{path}: start script, systemd unit and nginx configuration need a path of letters, digits and ._+-",
            "use another folder",
        )
