"""The public keys of the other hospitals, as this one has pinned them: who may be in a sum with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from client.secure.keys import read_private_key
from dusss_core.errors import UserError
from sites.config import SiteConfig

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

_LEAST = 2
"""Sites without which there is nobody to hide among."""


def read_peers(site: SiteConfig) -> dict[str, EllipticCurvePublicKey]:
    """Keys of the other sites by name: `secure_aggregation.peers`, whose lines are `NAME ecdsa-sha2-nistp384 AAAA...`.

    Raises:
        UserError: no such file, a line that is none, a name or a key twice, or another key for this site itself.
    """
    path = site.secure_aggregation.peers
    peers: dict[str, EllipticCurvePublicKey] = {}
    seen: dict[bytes, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line or line.startswith("#"):
            continue
        name, _, rest = line.partition(" ")
        key = _public_key(rest, f"{path}, line {number}")
        raw = _raw(key)
        if name in peers or raw in seen:
            raise UserError(
                f"{path}, line {number}: '{name}' or its key is there already ({seen.get(raw, name)})",
                "keep one line for each site; two sites never share a key",
            )
        peers[name], seen[raw] = key, name
    own = _raw(own_key(site).public_key())
    if site.site in peers and seen.get(own) != site.site:
        raise UserError(f"{path}: has another key for '{site.site}', which is this site", "take that line out")
    if seen.get(own, site.site) != site.site:
        raise UserError(f"{path}: has this site's key under the name '{seen[own]}'", "take that line out")
    peers.pop(site.site, None)
    if len(peers) + 1 < _LEAST:
        raise UserError(f"{path}: names no other site", "add a line for each of the other hospitals")
    return peers


def own_key(site: SiteConfig) -> EllipticCurvePrivateKey:
    """The private key with which this site signs.

    Raises:
        UserError: none is named, or it cannot be read.
    """
    path = site.secure_aggregation.key or (site.superlink.private_key if site.superlink else None)
    if path is None:
        raise UserError(
            f"site '{site.site}': secure aggregation needs this site's private key",
            "set superlink.private_key, or secure_aggregation.key",
        )
    return read_private_key(path)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (secure_aggregation.peers)", "write it, a line per hospital") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: could not be read: {error}", "mend its permissions; it is UTF-8 text") from None


def _public_key(text: str, where: str) -> EllipticCurvePublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        key = load_ssh_public_key(text.strip().encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UserError(f"{where}: not a site's name and its P-384 public key", "copy the line of its .pub file")
    return key


def _raw(key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
