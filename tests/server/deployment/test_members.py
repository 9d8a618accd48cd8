"""`python -m server run --resume --without SITE --also SITE`: one command lets a hospital go and another one in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dusss_core.files import write_text
from server.__main__ import main
from server.deployment.control import FlowerRun
from server.deployment.registry import Registry
from server.runs.eventlog import EventLog
from server.runs.runfolder import PARTNERS
from server.study.config import load_study
from tests.server.conftest import make_study
from tests.server.deployment.played import ROUND, server_app
from tests.server.deployment.test_registry import new_key


def key_of(public):
    return {"public_key": public, "fingerprint": "SHA256:abc", "since": "2026-01-01T10:00:00+00:00"}


@pytest.fixture
def begun(tmp_path, fake, quiet):
    """The command line that goes on with a run of alder and birch."""
    from server.simulation.simulate import simulate

    out = tmp_path / "out"
    study = make_study(data={"root": str(tmp_path)}, federation={"sites": ["alder", "birch"], "min_sites": 2})
    simulate(study, out, reporter=quiet)
    coordinator = tmp_path / "coordinator"
    coordinator.mkdir()
    sites = [{"name": name, "keys": [key_of(new_key())]} for name in ("alder", "birch", "cedar")]
    registry = Registry.model_validate({"sites": [*sites, {"name": "dogwood"}]})
    write_text(coordinator / "sites.json", registry.model_dump_json())
    return ["run", str(out / "config.yaml"), "--out", str(out), "--resume", "--coordinator", str(coordinator)]


def test_a_hospital_leaves_a_begun_study_and_another_joins_by_one_command(link, begun):
    link.do = server_app()
    assert main([*begun, "--without", "birch", "--also", "cedar"]) == 0
    (settings,) = link.started
    assert load_study(settings["study"]).federation.sites == ["alder", "cedar"]
    assert set(json.loads((Path(settings["out"]) / PARTNERS).read_text())) == {"alder", "cedar"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--without", "birch"], "1 site would be left, and federation.min_sites is 2"),
        (["--without", "cedar", "--also", "dogwood"], "--without cedar: not in federation.sites (alder, birch)"),
        (["--also", "birch"], "--also birch: is in federation.sites already"),
        (["--also", "nobody"], "no site 'nobody' (there are: alder, birch, cedar, dogwood)"),
        (["--also", "dogwood"], "--also dogwood: has no key (invited)"),
        (["--set", "federation.sites=null", "--without", "birch"], "federation.sites is null"),
    ],
)
def test_members_that_cannot_be_meant_are_refused_with_a_remedy(link, begun, capsys, options, told):
    assert main([*begun, *options]) == 2
    error = capsys.readouterr().err
    assert told in error and "->" in error and link.started == []
    assert load_study(begun[1]).federation.sites == ["alder", "birch"]


def test_status_says_at_which_hospital_a_study_that_trains_waits_for_approval(link, tmp_path, capsys):
    link.known[1] = FlowerRun(1, "running", "", "", tmp_path, "2026-01-01T10:00:00+00:00")
    log = EventLog(tmp_path)
    log.begin(1)
    for name, *arguments in (("on_site_outside", "node 3 (cedar)", "waiting for approval at cedar"), *ROUND):
        getattr(log, name)(*arguments)
    log.on_message("something else")

    def told(*options) -> str:
        assert main(["status", *options]) == 0
        return capsys.readouterr().out

    assert "  node 3 (cedar): takes no part: waiting for approval at cedar" in told(str(tmp_path)).splitlines()
    assert json.loads(told("--json"))["runs"][0]["outside"] == {"node 3 (cedar)": "waiting for approval at cedar"}
    log.on_site_outside("node 3 (cedar)", "")
    assert "cedar" not in told(str(tmp_path)) and json.loads(told("--json"))["runs"][0]["outside"] == {}
