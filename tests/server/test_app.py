"""The ServerApp under `flwr run`: what Flower was told wrongly is said at once, not waited for."""

from __future__ import annotations

from types import SimpleNamespace

import httpx
import pytest

from dusss_core.errors import UserError
from server import app
from tests.server.conftest import make_study


class Grid:
    """Flower's simulation, which makes its nodes one after another."""

    def __init__(self, *nodes: int):
        self._nodes = list(nodes)

    def get_node_ids(self) -> range:
        return range(self._nodes.pop(0) if len(self._nodes) > 1 else self._nodes[0])


def test_fewer_simulated_nodes_than_sites_are_told_with_the_line_to_type(monkeypatch):
    monkeypatch.setattr(app, "NODES_WAIT_S", 0.3)
    with pytest.raises(UserError, match="2 nodes, and the study has 3 sites") as error:
        app._check_nodes(Grid(2), 3)
    assert "flwr run . --stream --federation-config num-supernodes=3" in error.value.remedy


def test_nodes_that_are_still_being_made_are_waited_for():
    app._check_nodes(Grid(0, 1, 3), 3)
    app._check_nodes(Grid(4), 3)


def test_a_study_whose_certificate_expires_meanwhile_ends_with_what_mends_it(monkeypatch, tmp_path):
    def run(self):
        raise httpx.ConnectError("certificate verify failed: certificate has expired")

    monkeypatch.setattr("server.rounds.coordinator.Coordinator.run", run)
    monkeypatch.setattr("server.rounds.coordinator.Coordinator.__init__", lambda self, *_, **__: None)
    with pytest.raises(UserError, match="has expired") as told:
        app._run(SimpleNamespace(), make_study(), tmp_path, None)
    assert "renew-certificate" in told.value.remedy and told.value.code == "FD402"
