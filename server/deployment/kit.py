"""A hospital's start-up kit: one zip with what it fills in and what it trusts. Nothing in it is secret."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from dusss_core.files import write_bytes
from server.deployment.templates import render

_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_kit(path: Path, *, study: str, site: str, address: str, ca_certificate: Path, ca_fingerprint: str) -> None:
    """Write the zip of one hospital; the same input gives the same bytes.

    Args:
        address: host:port of the coordinator.
        ca_certificate: PEM file of the coordinator's authority.
        ca_fingerprint: its SHA-256, for the README: to be compared over the telephone.
    """
    from feddusss import __version__

    values = {
        "study": study,
        "site": site,
        "address": address,
        "fingerprint": ca_fingerprint,
        "version": __version__,
    }
    files = {
        "README.md": render("kit_readme.md.j2", **values).encode(),
        "site.yaml": render("site.yaml.j2", **values).encode(),
        "ca.crt": ca_certificate.read_bytes(),
        "feddusss-client.service": render("feddusss-client.service.j2", **values).encode(),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(f"{site}/{name}", date_time=_EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    write_bytes(path, buffer.getvalue())
