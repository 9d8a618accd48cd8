"""A site that is ready, but for a coordinator."""

from __future__ import annotations

import os
import shutil

import pytest

from client.preflight import machine
from client.secure.keys import make_key
from tests.client.preflight.looks import name_coordinator
from tests.client.tls import Authority


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ca")


@pytest.fixture
def site(site_file, authority, monkeypatch):
    """A site on a roomy machine, whose coordinator is at a closed port until a test gives it another."""
    roomy = shutil.disk_usage(site_file.parent)._replace(free=10**12)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: roomy)
    monkeypatch.setattr(machine, "available_memory_gb", lambda: 64.0)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    make_key(site_file.parent / "site.key", "alder")
    name_coordinator(site_file, 1)
    return site_file
