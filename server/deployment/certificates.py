"""The coordinator's own certificate authority and its one server certificate. Keys are EC P-384, files are PEM.

The authority exists for this coordinator alone: hospitals trust it for nothing else, no system store learns of it. The
hospitals' keys are not certified: the SuperLink knows their public halves (`server.deployment.registry`).
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dusss_core.errors import UserError
from dusss_core.files import write_atomically, write_bytes
from server.study.deployment import is_address

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

CA_DAYS = 3650
LOOPBACK = ("localhost", "127.0.0.1")
"""In every server certificate: nginx and the command line reach the SuperLink there."""
_CLOCK_SKEW = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Authority:
    """Where the authority lies."""

    key: Path
    certificate: Path


@dataclass(frozen=True)
class ServerPair:
    """Where the server's key and certificate lie."""

    key: Path
    certificate: Path


def make_authority(files: Authority, name: str, days: int = CA_DAYS) -> bool:
    """Make the authority, unless it is there.

    Returns:
        Whether it was made.

    Raises:
        UserError: a key without its certificate, which may belong to something else.
    """
    from cryptography import x509

    if files.certificate.exists():
        return False
    if files.key.exists():
        raise UserError(
            f"{files.key}: a key without its certificate {files.certificate.name}",
            "put the certificate back from the backup; move both away only if every hospital is to get a new kit",
        )
    key = _new_key()
    subject = _name(f"feddusss {name} CA"[:64])
    builder = (
        _builder(subject, key.public_key(), days)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    write_private_key(files.key, _pem_of(key))
    write_bytes(files.certificate, _sign(builder, key))
    return True


def make_server_certificate(
    authority: Authority, server: ServerPair, hosts: Iterable[str], days: int, *, new_key: bool = False
) -> None:
    """Sign a server certificate for `hosts` and loopback. A key that is there is kept, unless `new_key`.

    Raises:
        UserError: the authority's key is not there or does not fit its certificate.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    ca_key, ca = _load_authority(authority)
    key = _new_key() if new_key or not server.key.exists() else _load_key(server.key)
    names = list(dict.fromkeys([*hosts, *LOOPBACK]))
    alternatives = [x509.IPAddress(ipaddress.ip_address(n)) if is_address(n) else x509.DNSName(n) for n in names]
    builder = (
        _builder(_name(names[0][:64]), key.public_key(), days, until=ca.not_valid_after_utc)
        .issuer_name(ca.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    certificate = _sign(builder, ca_key)
    # the key first: after a crash between the two, `check_pair` finds that they do not fit
    write_private_key(server.key, _pem_of(key))
    write_bytes(server.certificate, certificate)


def check_pair(key: Path, certificate: Path) -> None:
    """Make sure that a key and a certificate belong together.

    Raises:
        UserError: they do not.
    """
    if _load_key(key).public_key() != load_certificate(certificate).public_key():
        raise UserError(f"{certificate}: does not fit {key.name}", "put the pair back from the backup")


def hosts_of(certificate: Path) -> list[str]:
    """Host names and addresses that a server certificate holds, without loopback."""
    from cryptography import x509

    names = load_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names if str(name.value) not in LOOPBACK]


def valid_until(certificate: Path) -> dt.datetime:
    """When a certificate expires, in UTC."""
    return load_certificate(certificate).not_valid_after_utc


def fingerprint(certificate: Path) -> str:
    """SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` shows it."""
    from cryptography.hazmat.primitives import hashes

    return load_certificate(certificate).fingerprint(hashes.SHA256()).hex(":").upper()


def load_certificate(path: Path) -> x509.Certificate:
    """Read a PEM certificate.

    Raises:
        UserError: no such file, not a certificate.
    """
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "put it back from the backup, or run provision") from None
    except ValueError as error:
        raise UserError(f"{path}: not a certificate ({error})", "put it back from the backup") from None


def write_private_key(path: Path, pem: bytes) -> None:
    """Write a key that only its owner can read, at no moment otherwise."""

    def write(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)

    write_atomically(path, write)


def _load_authority(files: Authority) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    ca = load_certificate(files.certificate)
    if not files.key.exists():
        raise UserError(
            f"{files.key}: the authority's key is not here", "bring it back from where it is kept, for this command"
        )
    check_pair(files.key, files.certificate)
    return _load_key(files.key), ca


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "put it back from the backup") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not an unencrypted private key ({error})", "put it back from the backup") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path}: not an EC key", "put it back from the backup")
    return key


def _new_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())


def _name(common_name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int, until: dt.datetime | None = None
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    end = now + dt.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # a hospital whose clock is slow would otherwise refuse a fresh certificate
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(min(end, until) if until else end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(**uses: bool) -> x509.KeyUsage:
    from cryptography import x509

    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: uses.get(name, False) for name in names})


def _sign(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import hashes, serialization

    return builder.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)
