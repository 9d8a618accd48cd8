"""What the preflight says of a site, and a coordinator that it can reach."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager

from client.preflight import find
from tests.client.tls import coordinator


def name_coordinator(site_file, port, host="localhost"):
    link = f"{{address: '{host}:{port}', root_certificates: ../ca/ca.crt, private_key: site.key}}"
    site_file.write_text(f"site: alder\ndata: {{manifest: manifest.csv}}\nstate_dir: state\nsuperlink: {link}\n")


def found(site_file, *overrides):
    """What the preflight says, by subject."""
    findings = list(find(site_file, overrides))
    for finding in findings:
        assert finding.level == "ok" or finding.remedy, finding
        assert "Traceback" not in finding.message and "\n" not in finding.message
    return {finding.subject: finding for finding in findings}


@contextmanager
def reachable(site_file, context, host="localhost"):
    with coordinator(context) as server:
        name_coordinator(site_file, server.port, host)
        yield server


def tree(folder):
    """Everything in a folder: names, modes, times, contents."""
    return {
        str(path): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.is_file() and hashlib.sha256(path.read_bytes()).digest(),
        )
        for path in sorted([folder, *folder.rglob("*")])
    }
