"""Real processes on loopback: what docs/deploy.md says to back up is enough to go on with, on both sides."""

from __future__ import annotations

import shutil

import pytest

from tests.server.conftest import make_study
from tests.server.deployed import federation, metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_study_goes_on_from_backups_after_both_disks_are_lost(tmp_path):
    study = make_study(
        study="backup",
        segment__rounds=30,
        method={"preset": "mean_teacher"},
        federation={"sites": ["alder", "birch"]},
    )
    out, backup = tmp_path / "run", tmp_path / "backup"
    with federation(tmp_path, study) as there:
        there.start_clients()
        there.run_and_stop_after(out, 2)
        done = max(line["round"] for line in metrics(out))
        for client in there.clients.values():
            client.process.end()
        there.link.kill()
        kept = {there.link.folder: "coordinator", out: "run"}
        kept |= {client.folder: client.name for client in there.clients.values()}
        for folder, name in kept.items():
            shutil.copytree(folder, backup / name)
            shutil.rmtree(folder)
        for folder, name in kept.items():
            shutil.copytree(backup / name, folder)
        there.link.start()
        there.start_clients()
        command = there.server("run", out / "config.yaml", "--out", out, "--resume", log="restored")
        try:
            assert command.wait(300) == 0, command.output
        finally:
            command.end()
    rounds = [(line["round"], line["site"]) for line in metrics(out) if line["site"] != "*" and "train" in line]
    assert len(rounds) == len(set(rounds)) == 2 * 30, "no round was trained twice, and none is missing"
    assert f"from round {done + 1} of 30" in command.output
