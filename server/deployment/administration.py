"""Commands of `python -m server` that prepare a deployment and keep the register of the hospitals."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dusss_core.commandline import complain
from dusss_core.errors import UserError
from feddusss import cli
from server.deployment.control import DEFAULT_COORDINATOR

MOST_DAYS = 3650
"""Of a certificate, as in a study's `deployment.days`."""

if TYPE_CHECKING:
    from server.deployment.folder import CoordinatorFolder


def add_commands(commands: Any) -> None:
    """Add provision, register, renew, revoke and renew-certificate."""
    provision = commands.add_parser("provision", help="certificates, start files and a kit for each hospital")
    provision.add_argument("study", help="a study file with a section `deployment`")
    provision.add_argument("--out", type=Path, default=Path("kits"), help="folder of the kits (kits)")
    cli.add_common_arguments(provision)
    provision.set_defaults(command=_provision)

    register = commands.add_parser("register", help="let a hospital in by its public key")
    register.add_argument("name", nargs="?", help="the hospital, as in deployment.sites")
    register.add_argument("public_key", nargs="?", metavar="PUBKEY", help="its .pub file, or the line in quotes")
    register.add_argument("--pending", action="store_true", help="hand to the SuperLink what it does not know yet")
    register.add_argument("--wait", type=float, default=0, metavar="S", help="wait S seconds for the SuperLink")
    _add_folder(register)
    register.set_defaults(command=_register)

    renew = commands.add_parser("renew", help="a hospital's new public key in place of its old one")
    renew.add_argument("name", help="the hospital")
    renew.add_argument("public_key", metavar="PUBKEY", help="its new .pub file, or the line in quotes")
    _add_folder(renew)
    renew.set_defaults(command=_renew)

    revoke = commands.add_parser("revoke", help="shut a hospital's key out, for good")
    revoke.add_argument("name", help="the hospital")
    _add_folder(revoke)
    revoke.set_defaults(command=_revoke)

    certificate = commands.add_parser("renew-certificate", help="a new server certificate; hospitals change nothing")
    certificate.add_argument("--days", type=int, default=825, help="validity (825)")
    certificate.add_argument("--new-key", action="store_true", help="also a new server key: the old one has leaked")
    _add_folder(certificate)
    certificate.set_defaults(command=_renew_certificate)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--coordinator",
        type=Path,
        default=DEFAULT_COORDINATOR,
        metavar="DIR",
        help=f"its folder ({DEFAULT_COORDINATOR})",
    )
    cli.add_common_arguments(parser, overrides=False)


def _provision(arguments: argparse.Namespace) -> None:
    from server.deployment.provision import provision

    folder = provision(arguments.study, arguments.out, arguments.overrides)
    print(f"the coordinator's folder, which no one else may read: {folder.path}")


def _register(arguments: argparse.Namespace) -> int:
    from server.deployment import registry
    from server.deployment.folder import open_folder

    folder = open_folder(arguments.coordinator)
    if arguments.pending:
        if arguments.name:
            _usage("register --pending takes no name")
        return _synchronise(folder, wait_s=arguments.wait, must_run=True)
    if not arguments.public_key:
        _usage("register needs NAME and PUBKEY, or --pending")
    key = registry.add_key(folder, arguments.name, registry.read_key_argument(arguments.public_key))
    _say_key(arguments.name, key)
    return _synchronise(folder, wait_s=arguments.wait)


def _renew(arguments: argparse.Namespace) -> int:
    from server.deployment import registry
    from server.deployment.folder import open_folder

    folder = open_folder(arguments.coordinator)
    key = registry.add_key(folder, arguments.name, registry.read_key_argument(arguments.public_key), renew=True)
    _say_key(arguments.name, key)
    return _synchronise(folder)


def _revoke(arguments: argparse.Namespace) -> int:
    from server.deployment import registry
    from server.deployment.folder import open_folder

    folder = open_folder(arguments.coordinator)
    key = registry.revoke(folder, arguments.name)
    print(f"{arguments.name}: the key {key.fingerprint} is revoked, for good")
    return _synchronise(folder)


def _renew_certificate(arguments: argparse.Namespace) -> None:
    from server.deployment.folder import open_folder
    from server.deployment.provision import renew_certificate

    if not 1 <= arguments.days <= MOST_DAYS:
        raise UserError(f"--days {arguments.days}: out of range", f"give 1 to {MOST_DAYS}")
    renew_certificate(open_folder(arguments.coordinator), arguments.days, new_key=arguments.new_key)


def _synchronise(folder: CoordinatorFolder, *, wait_s: float = 0, must_run: bool = False) -> int:
    """Bring the SuperLink up to date, and say what it did; one that is down is brought up to date when it starts."""
    from server.deployment import registry
    from server.deployment.control import Control, SuperLinkAway, find_connection

    with Control(find_connection(folder.path)) as superlink:
        give_up = time.monotonic() + wait_s
        while True:
            try:
                changes = registry.synchronise(folder, superlink)
                break
            except SuperLinkAway as away:
                if time.monotonic() < give_up:
                    time.sleep(0.5)
                elif must_run:
                    raise UserError(str(away), f"start it: {folder.path / 'start.sh'}") from None
                else:
                    print("the SuperLink is not running: this takes effect when start.sh starts it")
                    return cli.OK
    for name in changes.registered:
        print(f"{name}: registered at the SuperLink")
    for name in changes.unregistered:
        print(f"{name}: its {'former ' * (name in changes.registered)}key is unregistered at the SuperLink")
    for problem in changes.problems:
        complain(problem)
    return cli.USER_MUST_MEND if changes.problems else cli.OK


def _say_key(name: str, key: Any) -> None:
    print(f"{name}: {key.fingerprint}")
    print("  compare this with the hospital over the telephone, not by the mail that brought it")


def _usage(problem: str) -> None:
    raise UserError(problem, "see: python -m server register --help")
