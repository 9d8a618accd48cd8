"""A site's own key pair: EC P-384, made here; the private half never leaves."""

from __future__ import annotations

import os
import stat
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dusss_core.errors import UserError
from dusss_core.files import write_atomically, write_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


def make_key(path: Path, comment: str, *, force: bool = False) -> str:
    """Make a private key at `path`, mode 0600, in OpenSSH format, and its public half at `path`.pub.

    Args:
        comment: ends the public line, and tells a person whose key it is.
        force: a key that is there is kept beside the new one, under a name with the date.

    Returns:
        The public key, one line in OpenSSH format.

    Raises:
        UserError: there is a key already, or the folder cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path = Path(path)
    if path.exists():
        if not force:
            raise UserError(
                f"{path}: there is a key already",
                "keep it (its public half is in the .pub file beside it), or make a new one with --force: the "
                "coordinator must then register the new public key before this site can join again",
            )
        _put_aside(path)
    key = ec.generate_private_key(ec.SECP384R1())
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_atomically(path, lambda temporary: write_private(temporary, text), size=len(text))
    line = f"{_public(key)} {comment}"
    write_text(public_path(path), line + "\n")
    return line


def read_public_key(path: Path) -> str:
    """The public half of the private key at `path`, one line in OpenSSH format, without a comment.

    Raises:
        UserError: as `read_private_key`.
    """
    return _public(read_private_key(path))


def read_private_key(path: Path) -> EllipticCurvePrivateKey:
    """The private key at `path`.

    Raises:
        UserError: no key there, not one that Flower can use, or readable by others.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        content = Path(path).read_bytes()
        mode = stat.S_IMODE(Path(path).stat().st_mode)
    except FileNotFoundError:
        raise UserError(f"{path}: this site has no key yet", "make it: python -m client init --site FILE") from None
    except OSError as error:
        raise UserError(f"{path}: could not be read: {error.strerror}", "mend its permissions") from None
    if mode & 0o077:
        raise UserError(f"{path}: others on this machine can read the private key", f"chmod 600 {path}")
    try:
        key = load_ssh_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path}: not a private key in OpenSSH format ({error})", _MAKE_ANOTHER) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path}: not an elliptic-curve key", _MAKE_ANOTHER)
    return key


def public_path(path: Path) -> Path:
    """Where the public half of the private key at `path` is kept."""
    return Path(path).with_name(f"{Path(path).name}.pub")


def write_private(path: Path, content: bytes) -> None:
    """Make a file with mode 0600, which it has from the first moment.

    Raises:
        OSError: it is there already, or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


_MAKE_ANOTHER = "make one: python -m client init --site FILE --force"


def _public(key: EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _put_aside(path: Path) -> None:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for old in (path, public_path(path)):
        if old.exists():
            old.rename(old.with_name(f"{old.name}.{stamp}"))
