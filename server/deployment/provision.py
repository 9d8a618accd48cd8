"""Everything that a coordinator needs before the first hospital joins: authority, certificate, start files, kits.

Running it again is safe: keys and certificates that are there are kept, sites are added and never removed, and a text
file that a person has changed is left alone (the new text is put beside it).
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from dusss_core.errors import UserError
from dusss_core.files import write_json, write_text
from server.deployment import certificates, registry
from server.deployment.accounts import account, check_account
from server.deployment.folder import CONNECTION, CoordinatorFolder, check_plain
from server.deployment.kit import write_kit
from server.deployment.templates import render
from server.study.config import find_study, load_study
from server.study.deployment import DeploymentConfig
from server.study.federation import FederationConfig

Say = Callable[[str], None]
FLEET_CALLS = (
    "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "get-run", "get-fab",
    "push-object", "pull-object", "confirm-message-received",
)  # fmt: skip
"""What nginx lets through below /v1/fleet/: the calls of a SuperNode whose key the coordinator registered."""


def provision(
    study_file: str | Path, out: Path, overrides: Iterable[str] = (), say: Say = print, *, kits: bool = True
) -> CoordinatorFolder:
    """Make, or complete, `out`/coordinator and one `out`/SITE.zip per hospital.

    Args:
        say: gets a line for everything that was made, kept or left alone.
        kits: False: the hospitals are on this machine. Then there are no kits, and neither nginx nor a service.

    Raises:
        UserError: the study has no `deployment`; a key without its certificate; a path that needs quoting; the
            folder is there already, and another account's.
    """
    study = load_study(study_file, overrides)
    if study.deployment is None:
        raise UserError(f"{study_file}: no section 'deployment'", "add one; configs/study.yaml shows it")
    deployment = study.deployment
    out = Path(out).expanduser().absolute()
    if kits:
        check_plain(out)
    folder = CoordinatorFolder(out / "coordinator")
    check_account(folder.path)
    _make_private(folder.path)
    _make_private(folder.flwr_home)

    if kits and account() == "root":
        say("warning: provisioned as root, so the SuperLink would run as root; better use an account of its own")
    _make_certificates(folder, study.study, deployment, say)
    added = registry.add_sites(folder, deployment.sites)
    study_path = find_study(study_file).resolve()
    if kits:
        check_plain(study_path)
    _write_start_files(folder, study.study, study_path, deployment, say, kits=kits)
    if kits:
        _write_kits(out, folder, study.study, deployment, added, say)
    _say_others(study.federation, deployment.sites, say)
    for site in registry.load_registry(folder).sites:
        if site.name not in deployment.sites:
            say(f"{site.name}: no longer in the study file; it stays {site.status} until: server revoke {site.name}")
    return folder


def _say_others(federation: FederationConfig, kits: Iterable[str], say: Say) -> None:
    """Name the hospitals that get a kit and would take no part, and those that are waited for and get none."""
    for key, sites in (("sites", federation.sites), ("sizes", federation.sizes)):
        if sites is None:
            continue
        if refused := sorted(set(kits) - set(sites)):
            say(f"warning: {', '.join(refused)}: not in federation.{key}, so takes no part, kit or not: add it there")
        if missing := sorted(set(sites) - set(kits)):
            say(f"warning: {', '.join(missing)}: in federation.{key} and not in deployment.sites, so there is no kit")


def renew_certificate(folder: CoordinatorFolder, days: int, *, new_key: bool = False, say: Say = print) -> None:
    """A new server certificate from the same authority, for the same hosts: hospitals change nothing."""
    hosts = certificates.hosts_of(folder.server.certificate)
    certificates.make_server_certificate(folder.authority, folder.server, hosts, days, new_key=new_key)
    _say_certificate(folder, "renewed" + (" with a new key" if new_key else ""), say)
    say("now: start the SuperLink again, and let nginx read it: nginx -s reload")


def _make_certificates(folder: CoordinatorFolder, study: str, deployment: DeploymentConfig, say: Say) -> None:
    made = certificates.make_authority(folder.authority, study)
    until = certificates.valid_until(folder.authority.certificate)
    say(f"ca.crt: {'made' if made else 'kept'}, valid until {until:%Y-%m-%d}")
    if not folder.server.certificate.exists():
        certificates.make_server_certificate(folder.authority, folder.server, deployment.hosts, deployment.days)
        return _say_certificate(folder, "made", say)
    certificates.check_pair(folder.server.key, folder.server.certificate)
    if set(certificates.hosts_of(folder.server.certificate)) != set(deployment.hosts) - set(certificates.LOOPBACK):
        certificates.make_server_certificate(folder.authority, folder.server, deployment.hosts, deployment.days)
        return _say_certificate(folder, "made again, since the hosts have changed", say)
    return _say_certificate(folder, "kept", say)


def _say_certificate(folder: CoordinatorFolder, what: str, say: Say) -> None:
    hosts = ", ".join(certificates.hosts_of(folder.server.certificate)) or "this machine alone"
    say(f"server.crt: {what}, for {hosts}, valid until {certificates.valid_until(folder.server.certificate):%Y-%m-%d}")


def _write_start_files(
    folder: CoordinatorFolder, study: str, study_file: Path, deployment: DeploymentConfig, say: Say, *, kits: bool
) -> None:
    programs = Path(sys.executable).parent
    if kits:
        check_plain(programs)
    values = {
        "study": study,
        "study_file": study_file,
        "home": folder.path.parent.parent,
        "folder": folder.path,
        "programs": programs,
        "user": account(),
        "deployment": deployment,
        "connection": CONNECTION,
        "fleet_calls": FLEET_CALLS,
        "quote": shlex.quote,
    }
    generated = _Generated(folder, say)
    for name, template, mode in (
        ("start.sh", "start.sh.j2", 0o700),
        ("feddusss-superlink.service", "feddusss-superlink.service.j2", 0o600),
        ("feddusss-study.service", "feddusss-study.service.j2", 0o600),
        ("nginx.conf", "nginx.conf.j2", 0o600),
        ("flwr/config.toml", "config.toml.j2", 0o600),
    ):
        if not kits and name not in ("start.sh", "flwr/config.toml"):
            continue
        generated.write(name, render(template, **values), mode)


def _write_kits(
    out: Path, folder: CoordinatorFolder, study: str, deployment: DeploymentConfig, added: list[str], say: Say
) -> None:
    fingerprint = certificates.fingerprint(folder.authority.certificate)
    for site in deployment.sites:
        path = out / f"{site}.zip"
        write_kit(
            path,
            study=study,
            site=site,
            address=deployment.address,
            ca_certificate=folder.authority.certificate,
            ca_fingerprint=fingerprint,
        )
        say(f"{path.name}: {'new site, ' if site in added else ''}send it to {site}")
    say(f"fingerprint of ca.crt, to be compared over the telephone: {fingerprint}")


class _Generated:
    """Text files that are written again as long as nobody has changed them."""

    def __init__(self, folder: CoordinatorFolder, say: Say):
        self._folder = folder
        self._say = say

    def write(self, name: str, text: str, mode: int) -> None:
        path = self._folder.path / name
        written = self._digests()
        if path.exists() and _digest(path.read_text(encoding="utf-8")) not in (written.get(name), _digest(text)):
            path = path.with_name(f"{path.name}.new")
            self._say(f"{name}: was changed by hand and is kept; what it would be now: {path.name}")
        else:
            write_json(self._folder.generated, {**written, name: _digest(text)})
        write_text(path, text)
        path.chmod(mode)

    def _digests(self) -> dict[str, str]:
        if not self._folder.generated.exists():
            return {}
        return json.loads(self._folder.generated.read_text(encoding="utf-8"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _make_private(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
