"""`python -m server status`, `stop` and `nodes`, and what a coordinator is told of its SuperLink and hospitals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dusss_core.errors import UserError
from server.__main__ import main
from server.deployment import accounts, registry
from server.deployment.control import FlowerRun, Node, find_connection
from server.deployment.folder import CoordinatorFolder
from tests.client.tls import Authority
from tests.server.deployment.played import ROUND, server_app
from tests.server.deployment.test_registry import new_key


def test_a_hint_names_a_coordinators_folder_that_is_not_the_usual_one(link, study_file, tmp_path, capsys):
    out = (tmp_path / "out").absolute()
    link.known[1] = FlowerRun(1, "running", "", "", out, "2026-01-01T10:00:00+00:00")
    assert main(["stop", "1", "--coordinator", "/srv/kits/coordinator"]) == 0
    assert capsys.readouterr().out.endswith("--resume --coordinator /srv/kits/coordinator\n")


def test_status_of_runs_that_failed_or_were_replaced_tells_of_each_its_own(link, study_file, tmp_path, capsys):
    out = tmp_path / "out"
    link.do, link.ends_as = server_app(("on_message", "waiting for sites"), code=2, text="too few sites"), "failed"
    assert main(["run", str(study_file), "--out", str(out)]) == 2
    link.do, link.ends_as = server_app(*ROUND), "completed"
    assert main(["run", str(study_file), "--out", str(out), "--resume"]) == 0
    capsys.readouterr()
    assert main(["status"]) == 0
    _, failed, completed = capsys.readouterr().out.splitlines()
    assert failed.split() == ["1", "tiny", "failed", "-", "-", "-", "-", str(out)]
    assert completed.split()[:4] == ["2", "tiny", "completed", "segment"]
    assert main(["status", "1"]) == 0
    shown = capsys.readouterr().out
    assert "study tiny: before its first round\n" in shown and "ended with code 2: too few sites" in shown
    assert "waiting for sites" not in shown and "waits for sites" not in shown
    assert "--resume" not in shown, "another run has taken its place"


def test_status_says_where_each_run_is(link, study_file, tmp_path, capsys):
    link.do = server_app(*ROUND)
    out = tmp_path / "out"
    main(["run", str(study_file), "--out", str(out)])
    capsys.readouterr()
    assert main(["status"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["run", "study", "state", "phase"]
    assert row.split() == [
        "1", "tiny", "completed", "segment", "1/2", "1", "of", "2",
        "train.loss", "0.5000", "val.loss", "0.7000", "val.dice", "0.1000", str(out),
    ]  # fmt: skip
    assert main(["status", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "birch: left out: no answer in time" in shown and "ended with code 0" in shown
    assert main(["status", "4711"]) == 2
    assert main(["status", "1", "--follow"]) == 0


def test_stop_stops_a_run_by_its_folder_and_refuses_one_that_has_ended(link, study_file, tmp_path, capsys):
    out = (tmp_path / "out").absolute()
    link.known[1] = FlowerRun(1, "finished", "failed", "", out, "2026-01-01T10:00:00+00:00")
    assert main(["stop", "1"]) == 2
    link.known[2] = FlowerRun(2, "running", "", "", out, "2026-01-01T11:00:00+00:00")
    assert main(["stop", str(out)]) == 0
    assert link.stopped == [2] and "--resume" in capsys.readouterr().out


def test_nodes_shows_names_states_and_keys(link, capsys, tmp_path):
    assert main(["nodes", "--coordinator", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[:2] == ["alder", "online"] and shown[1].endswith("SHA256:abc")
    assert shown[2].split()[:3] == ["?", "offline", "never"]


def test_nodes_shows_who_is_missing(link, capsys, tmp_path):
    folder = CoordinatorFolder(tmp_path)
    registry.add_sites(folder, ["alder", "birch", "cedar"])
    registry.add_key(folder, "cedar", new_key())
    registry.revoke(folder, "cedar")
    assert main(["nodes", "--coordinator", str(tmp_path)]) == 0
    rows = [line.split("  ")[0] + ": " + line for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 5, "alder once"
    assert "no key yet" in rows[3] and rows[3].startswith("birch")
    assert "revoked" in rows[4] and rows[4].startswith("cedar")


def test_a_hospital_that_was_revoked_or_has_sent_no_key_is_not_told_as_away():
    from server.deployment.watching import Collector, state_of_sites

    key = {"public_key": "k", "fingerprint": "SHA256:abc", "since": "2026-01-01"}
    sites = [
        {"name": "alder", "keys": [{**key, "node_id": 11}]},
        {"name": "birch", "keys": [{**key, "node_id": 12}]},
        {"name": "cedar", "keys": [{**key, "node_id": 13, "wanted": False}]},
        {"name": "elm"},
    ]
    nodes = [Node(11, "alder", "online", "", "SHA256:abc"), Node(12, "birch", "offline", "", "SHA256:abc")]
    told = state_of_sites(nodes, registry.Registry(sites=sites))
    assert {site["site"]: site["state"] for site in told}["cedar"] == "revoked"
    [connected] = Collector(Path())._of_sites(told)
    assert {sample.labels["site"]: sample.value for sample in connected.samples} == {"alder": 1.0, "birch": 0.0}


def test_a_certificate_that_expires_is_told_before_it_has(tmp_path):
    from server.deployment.watching import Collector

    Authority(tmp_path).server_files(["localhost"], ends=10)
    page = {family.name: family.samples[0].value for family in Collector(tmp_path).collect()}
    assert 9 * 86400 < page["feddusss_certificate_seconds_left"] <= 10 * 86400
    (tmp_path / "server.crt").write_text("not one")
    assert "feddusss_certificate_seconds_left" not in {family.name for family in Collector(tmp_path).collect()}


def test_a_register_that_is_damaged_takes_the_other_figures_away_from_nobody(link, tmp_path):
    from server.deployment import watching

    link.known[1] = FlowerRun(1, "running", "", "", tmp_path, "2026-01-01T10:00:00+00:00")
    (tmp_path / "sites.json").write_text("{")
    names = {family.name for family in watching.Collector(tmp_path).collect()}
    assert {"feddusss_superlink_up", "feddusss_disk_free_bytes", "feddusss_run_running"} <= names
    assert "feddusss_site_connected" not in names


def test_a_coordinators_file_that_may_not_be_read_is_told_as_that(tmp_path, monkeypatch):
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text("")

    def refused(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(UserError, match="may not read it"):
        find_connection(tmp_path)
    owner, me = accounts.account(), os.geteuid() + 4711
    monkeypatch.setattr(os, "geteuid", lambda: me)
    with pytest.raises(UserError, match=rf"config.toml is {owner}'s\n.*sudo -iu {owner}; .*chown -R {me}: "):
        find_connection(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "no such file"),
        ("[superlink]\n", "names no SuperLink"),
        ("nonsense", "names no SuperLink"),
        ('[superlink]\ndefault = "a"\n[superlink.a]\naddress = "x:1"\n', "no 'root-certificates'"),
    ],
)
def test_a_coordinators_folder_without_a_superlink_is_told(tmp_path, text, problem):
    if text is not None:
        (tmp_path / "flwr").mkdir()
        (tmp_path / "flwr" / "config.toml").write_text(text)
    with pytest.raises(UserError, match=problem):
        find_connection(tmp_path)
