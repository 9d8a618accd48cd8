"""Real processes on loopback: a study waits until a person at each hospital has approved it, and the coordinator is
told where it waits."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.deployment import wait_until
from tests.server.conftest import make_study
from tests.server.deployed import federation, metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def client(site_file, command, *arguments) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "client", command, *arguments, "--site", str(site_file)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_study_waits_for_a_yes_at_each_hospital_and_the_coordinator_is_told_where(tmp_path):
    study = make_study(
        study="asked", segment__rounds=1, method={"preset": "supervised"}, federation={"sites": ["alder", "birch"]}
    )
    out = tmp_path / "run"
    with federation(tmp_path, study, limits={"approval": True}) as there:
        there.start_clients()
        run = there.run(out)
        try:
            for name in ("alder", "birch"):
                wait_until(lambda name=name: f"waiting for approval at {name}" in run.output, 120, f"{name} to wait")
            assert "waiting for approval at birch" in there.told("status", out)
            assert not (out / "metrics.jsonl").exists()
            for name, site in there.clients.items():
                shown = client(site.site_file, "show", "asked")
                assert "partners  2" in shown and "alder" in shown and "birch" in shown
                digest = shown.split("client approve asked ")[1].split()[0]
                assert f"may run at {name}" in client(site.site_file, "approve", "asked", digest)
            assert run.wait(300) == 0, run.output
        finally:
            run.end()
        assert {line["site"] for line in metrics(out)} >= {"alder", "birch"}
        for site in there.clients.values():
            assert "study approved" in client(site.site_file, "audit")
