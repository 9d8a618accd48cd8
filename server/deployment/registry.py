"""Which hospital has which key: sites.json in the coordinator's folder.

The file says what is wanted. `synchronise` makes the SuperLink agree with it, whenever the SuperLink runs: keys that
are wanted and not there are registered, keys that are not wanted any more are unregistered. So a command that was
given while the SuperLink was down takes effect at its next start, and a lost database is made good from this file.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from dusss_core.config import Strict
from dusss_core.errors import UserError
from dusss_core.files import exclusive, write_text
from server.deployment.accounts import not_permitted
from server.deployment.control import ControlFailed, fingerprint
from server.deployment.folder import CoordinatorFolder

if TYPE_CHECKING:
    from server.deployment.control import Control

Status = Literal["invited", "pending", "registered", "revoked"]
"""invited: has a kit, sent no key yet. pending: its key waits for the SuperLink. registered: may take part. revoked."""


class Key(Strict):
    """One public key of a site."""

    public_key: str
    """One line, as in an OpenSSH .pub file, without the comment."""
    fingerprint: str
    """SHA256:..., as `ssh-keygen -l` shows it; to compare over the telephone."""
    wanted: bool = True
    """Whether the SuperLink is to accept it."""
    node_id: int | None = None
    """Flower's number for it; null: the SuperLink does not know it yet."""
    since: str
    """When it was accepted here, UTC."""
    ended: str | None = None
    """When it was renewed or revoked, UTC."""


class Site(Strict):
    """One hospital."""

    name: str
    keys: list[Key] = Field(default_factory=list)
    """Oldest first. A key that was ever used is never accepted again."""

    @property
    def key(self) -> Key | None:
        """The key that is wanted; None: no key yet, or revoked."""
        return next((key for key in reversed(self.keys) if key.wanted), None)

    @property
    def status(self) -> Status:
        if not self.keys:
            return "invited"
        if self.key is None:
            return "revoked"
        return "registered" if self.key.node_id is not None else "pending"


class Registry(Strict):
    """All hospitals."""

    version: Literal[1] = 1
    sites: list[Site] = Field(default_factory=list)

    def site(self, name: str) -> Site:
        """The site of that name.

        Raises:
            UserError: there is none.
        """
        for site in self.sites:
            if site.name == name:
                return site
        known = ", ".join(site.name for site in self.sites) or "none"
        raise UserError(
            f"no site {name!r} (there are: {known})", "add it to deployment.sites of the study, and run provision again"
        )

    def names_by_node(self) -> dict[int, str]:
        """Node id -> name of the site, for every key that the SuperLink ever knew."""
        return {key.node_id: site.name for site in self.sites for key in site.keys if key.node_id is not None}


@dataclass
class Changes:
    """What `synchronise` did at the SuperLink."""

    registered: list[str] = field(default_factory=list)
    unregistered: list[str] = field(default_factory=list)
    problems: list[UserError] = field(default_factory=list)
    """What a person must look at."""


def load_registry(folder: CoordinatorFolder) -> Registry:
    """Read sites.json; an absent one is empty.

    Raises:
        UserError: not readable, not whole.
    """
    try:
        return Registry.model_validate_json(folder.register.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Registry()
    except PermissionError:
        raise not_permitted(folder.register) from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{folder.register}: {first}", "put it back from the backup") from None


def add_sites(folder: CoordinatorFolder, names: Iterable[str]) -> list[str]:
    """Add the sites that are not there yet; none is ever removed.

    Returns:
        Names of those that were added.
    """
    with _changing(folder) as registry:
        known = {site.name for site in registry.sites}
        added = [name for name in names if name not in known]
        registry.sites.extend(Site(name=name) for name in added)
    return added


def add_key(folder: CoordinatorFolder, name: str, public_key: str, *, renew: bool = False) -> Key:
    """Record the public key of a site.

    Args:
        public_key: the line of an OpenSSH .pub file.
        renew: the site has a key already, and this one takes its place.

    Raises:
        UserError: not a P-384 public key; its comment is the name of another site; used before, by any site; the site
            has a key and `renew` is off, or the other way round.
    """
    line, shown = read_public_key(public_key)
    with _changing(folder) as registry:
        site = registry.site(name)
        _refuse_anothers_key(public_key, site, registry)
        for other in registry.sites:
            for key in other.keys:
                if key.public_key == line:
                    _refuse_used_key(key, other, site)
        if site.key is not None and not renew:
            raise UserError(
                f"{name} has the key {site.key.fingerprint}",
                f"to put this one in its place: python -m server renew {name} PUBKEY",
            )
        if site.key is None and renew:
            raise UserError(
                f"{name} has no key to renew ({site.status})",
                f"register this one: python -m server register {name} PUBKEY",
            )
        _end(site)
        site.keys.append(Key(public_key=line, fingerprint=shown, since=_now()))
        return site.keys[-1]


def revoke(folder: CoordinatorFolder, name: str) -> Key:
    """Record that the key of a site is wanted no more.

    Raises:
        UserError: no such site, or it has no key.
    """
    with _changing(folder) as registry:
        site = registry.site(name)
        key = site.key
        if key is None:
            raise UserError(f"{name} has no key ({site.status})", "there is nothing to revoke")
        _end(site)
        return key


def synchronise(folder: CoordinatorFolder, superlink: Control) -> Changes:
    """Make the SuperLink accept the keys that are wanted, and none of those that were given up.

    New keys come first, so that a site whose key is renewed is never without one. Running it twice changes nothing.
    Keys that are not in the register at all are reported and left alone.

    A key that was unregistered once is refused by Flower for good.

    Raises:
        SuperLinkAway: it is not running.
        ControlFailed: it refused to unregister a key.
    """
    changes = Changes()
    with _changing(folder) as registry:
        known = {node.fingerprint: node for node in superlink.nodes()}
        owners = {key.fingerprint: (site, key) for site in registry.sites for key in site.keys}
        for site, key in (pair for pair in owners.values() if pair[1].wanted):
            node = known.get(key.fingerprint)
            if node is not None:
                key.node_id = node.id
                continue
            try:
                key.node_id = superlink.register(site.name, _pem(key.public_key))
            except ControlFailed as error:
                key.node_id = None
                changes.problems.append(
                    UserError(
                        f"{site.name}: not registered: {error}", "python -m server register --pending tries again"
                    )
                )
            else:
                changes.registered.append(site.name)
        for known_fingerprint, node in known.items():
            if known_fingerprint not in owners:
                changes.problems.append(
                    UserError(
                        f"the SuperLink accepts node {node.id} ({node.name or 'no name'}), which is not in "
                        f"{folder.register.name}",
                        "find out who registered it",
                    )
                )
            elif not owners[known_fingerprint][1].wanted:
                superlink.unregister(node.id)
                changes.unregistered.append(owners[known_fingerprint][0].name)
    return changes


def read_public_key(text: str) -> tuple[str, str]:
    """Check the line of an OpenSSH .pub file.

    Returns:
        The line without its comment, and the fingerprint.

    Raises:
        UserError: not a public key, not EC P-384; a private key, which should never have been sent.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    if "PRIVATE KEY" in text:
        raise UserError(
            "this is a private key, which must never leave its hospital",
            "delete it everywhere, let the hospital make a new key, and send the file that ends in .pub",
        )
    remedy = "the hospital's `python -m client init` prints the line to send: ecdsa-sha2-nistp384 AAAA..."
    try:
        key = s.load_ssh_public_key(" ".join(text.split()).encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"not a public key in OpenSSH format ({error})", remedy) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UserError("not an EC P-384 key", remedy)
    line = key.public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH).decode()
    return line, fingerprint(_pem(line))


def _pem(line: str) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    return s.load_ssh_public_key(line.encode()).public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)


@contextmanager
def _changing(folder: CoordinatorFolder) -> Iterator[Registry]:
    """The registry, for one command at a time; written back after an error too: the SuperLink may have changed."""
    try:
        with exclusive(folder.path / "sites.lock", wait_s=30):
            registry = load_registry(folder)
            before = registry.model_dump_json(indent=2)
            try:
                yield registry
            finally:
                after = registry.model_dump_json(indent=2)
                if after != before or not folder.register.exists():
                    write_text(folder.register, after + "\n")
    except BlockingIOError:
        raise UserError(
            f"{folder.path}: another command is changing the sites", "try again when it has ended"
        ) from None


def _refuse_anothers_key(public_key: str, site: Site, registry: Registry) -> None:
    """`python -m client init` ends the line with the site's name: two keys that were swapped would both be burnt."""
    comment = " ".join(public_key.split()[2:]).lower()
    if comment == site.name.lower():
        return
    for other in registry.sites:
        if other.name.lower() == comment:
            command = "register" if other.key is None else "renew"
            raise UserError(
                f"this key says that it is {other.name}'s, not {site.name}'s",
                f"if so: python -m server {command} {other.name} PUBKEY; if not, {site.name} has the wrong name in its "
                "site.yaml: let it put its own there and make a new key",
            )


def _refuse_used_key(key: Key, owner: Site, site: Site) -> None:
    if key.wanted and owner.name == site.name:
        raise UserError(f"{site.name} has this key already ({owner.status})", "there is nothing to do")
    ended = "" if key.wanted else f", until {key.ended}"
    raise UserError(
        f"this key was used by {owner.name}{ended}",
        "every site has a key of its own, and one that was given up is never used again: let the site make a new one",
    )


def _end(site: Site) -> None:
    for key in site.keys:
        if key.wanted:
            key.wanted, key.ended = False, _now()


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def read_key_argument(text: str) -> str:
    """What a command's PUBKEY means: the content of that file, or the line itself.

    Raises:
        UserError: neither.
    """
    if text.startswith("ecdsa-") or "\n" in text:
        return text
    path = Path(text).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{text}: no such file", "give the .pub file, or the line itself in quotes: 'ecdsa-sha2-nistp384 AAAA...'"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text}: not readable ({error})", "give the .pub file that the hospital sent") from None
