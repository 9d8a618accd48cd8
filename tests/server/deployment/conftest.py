"""A study, and the SuperLink that it is given to."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from feddusss import configfile
from server.deployment import control, run
from tests.server.conftest import make_study
from tests.server.deployment.played import PlayedSuperLink


@pytest.fixture
def link(monkeypatch):
    played = PlayedSuperLink()

    @contextmanager
    def connected(coordinator):
        yield played

    for module in (control, run):
        monkeypatch.setattr(module, "connected", connected)
    for name in ("_POLL_S", "_ASK_S"):
        monkeypatch.setattr(run, name, 0.0)
    for name in ("_AWAY_S", "_FREE_S"):
        monkeypatch.setattr(run, name, 0.05)
    return played


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(configfile.dump(make_study()))
    return path
