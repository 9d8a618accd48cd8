"""The federation on one machine before anything is started: what is made, what is refused, and what is said."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple

import pytest
import yaml

from client.__main__ import main as client
from dusss_core.errors import UserError
from dusss_core.files import exclusive
from feddusss.bundle import release_bundle
from server.__main__ import main
from server.deployment.certificates import hosts_of
from server.deployment.registry import load_registry
from server.onemachine import prepare as prepare_module
from server.onemachine.layout import lay_out
from server.onemachine.prepare import opened, prepare
from server.onemachine.system import MARK
from server.study.config import find_study, load_study
from sites.__main__ import main as sites
from sites.config import load_site
from tests.deployment import LOOPBACK, ROOT, free_port

SITES = ("site_a", "site_b", "site_c")
SMALL = [
    "simulation.data.synth.size=32",
    "simulation.data.synth.hospitals=["
    + ",".join(f"{{name: {s}, train: 8, val: 4, test: 4, label_fraction: 0.5}}" for s in SITES)
    + "]",
]


@pytest.fixture
def layout(tmp_path):
    """A small federation in a folder with a blank in its name."""
    return lay_out(tmp_path / "my runs" / "fed", free_port(), SMALL)


@pytest.fixture
def prepared(layout):
    with opened(layout):
        prepare(layout, lambda text: None)
    return layout


def command(layout, *options: str) -> list[str]:
    settings = [part for override in SMALL for part in ("--set", override)]
    return ["federation", "--out", str(layout.out), "--port", str(layout.port), *options, *settings]


def test_the_literal_line_is_all_that_a_hospital_types():
    there = lay_out(None, None)
    assert [there.site_arguments(site) for site in SITES] == [["--site", f"configs/{site}.yaml"] for site in SITES]
    lines = there.by_hand()
    assert "\n  runs/federation/coordinator/start.sh\n  python -m client --site configs/site_a.yaml\n" in lines
    assert lines.endswith("\n  python -m server run federation --coordinator runs/federation/coordinator")


def test_another_port_and_folder_are_named_where_a_hospitals_file_says_otherwise(prepared):
    for site in SITES:
        arguments = prepared.site_arguments(site)
        found = load_site(arguments[1], [a for a in arguments[2:] if a != "--set"])
        folder = prepared.out / "hospitals" / site
        assert found.data.manifest == folder / "manifest.csv"
        assert found.state_dir == folder / "state"
        assert found.superlink.address == f"127.0.0.1:{prepared.port}"
        assert found.superlink.root_certificates == prepared.out / "coordinator" / "ca.crt"
        assert found.superlink.private_key == folder / f"{site}.key"


@pytest.mark.parametrize("run", [[], ["--check"], ["init"]], ids=["start", "check", "init"])
def test_before_preparation_a_hospital_is_told_what_to_run(run, tmp_path, capsys):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    assert client([*run, "--site", str(tmp_path / "configs" / "site_b.yaml")]) == 2
    told = capsys.readouterr()
    assert "manifest.csv is not there yet" in told.out + told.err
    assert "make federation-prepare" in told.out + told.err
    assert not (tmp_path / "runs").exists()


def test_before_preparation_the_check_of_the_data_says_what_to_run(tmp_path, capsys):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    assert sites(["check", str(tmp_path / "configs" / "site_a.yaml")]) == 2
    told = capsys.readouterr()
    assert "make federation-prepare" in told.out + told.err


def test_hospitals_files_are_no_studies():
    with pytest.raises(UserError) as caught:
        find_study("site_a")
    assert "presets: demo, federation, monuseg" in caught.value.remedy
    assert "site_" not in caught.value.remedy


def test_every_preset_is_a_study():
    for preset in (ROOT / "configs").glob("*.yaml"):
        if not preset.stem.startswith("site_"):
            load_study(preset.stem)


def test_the_bundle_holds_none_of_the_hospitals_files():
    content, _ = release_bundle()
    assert b"site_a" not in content and b"superlink" not in content


def test_preparation_makes_all_that_start_sh_and_the_hospitals_need(prepared):
    folder = prepared.coordinator
    assert hosts_of(folder.server.certificate) == []  # loopback alone
    assert str(prepared.port) in (folder.path / "start.sh").read_text()
    assert {site.name: site.status for site in load_registry(folder).sites} == dict.fromkeys(SITES, "pending")
    for site in SITES:
        assert sites(["check", *prepared.site_arguments(site)[1:]]) == 0
    assert not list(prepared.out.rglob("*.zip"))
    assert not (folder.path / "nginx.conf").exists()


def test_a_prepared_hospital_misses_the_superlink_alone(prepared, capsys):
    assert client(["--check", *prepared.site_arguments("site_c")]) == 2
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert len(wrong) == 1 and wrong[0].split()[1] == "coordinator"


def test_preparing_again_keeps_keys_certificates_and_data(prepared):
    def contents():
        return {
            path: path.read_bytes() for path in prepared.out.rglob("*") if path.is_file() and "state" not in str(path)
        }

    before, said = contents(), []
    with opened(prepared):
        prepare(prepared, said.append)
    assert contents() == before
    assert any("synthetic hospitals: kept" in line for line in said)
    assert sum("key kept" in line for line in said) == 3


def test_a_hospitals_new_key_takes_the_place_of_its_old_one(prepared):
    prepared.key("site_b").unlink()
    with opened(prepared):
        prepare(prepared, lambda text: None)
    keys = {site.name: site.keys for site in load_registry(prepared.coordinator).sites}
    assert [key.wanted for key in keys["site_b"]] == [False, True]
    assert len(keys["site_a"]) == 1


def test_the_command_prepares_and_prints_the_lines(layout, capsys):
    assert main(command(layout, "--prepare")) == 0
    told = capsys.readouterr().out
    assert f"superlink.address=127.0.0.1:{layout.port}" in told
    assert "'" + str(layout.out / "coordinator" / "start.sh") + "'" in told  # a blank is quoted


# What stands in the way: exit code 2, a line with the remedy, and nothing is started or deleted.


def refused(layout, capsys, *options: str) -> str:
    assert main(command(layout, *options)) == 2
    told = capsys.readouterr()
    assert "the SuperLink answers" not in told.out
    assert not (layout.out / "coordinator").exists()
    return told.err


def test_a_port_in_use_is_named_with_who_uses_it(layout, capsys):
    with socket.create_server((LOOPBACK, layout.port)):
        told = refused(layout, capsys)
    assert f"port {layout.port} of this machine is in use" in told
    assert "make federation PORT=N" in told
    if sys.platform == "linux":
        assert f"by process {os.getpid()}" in told


@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_what_is_no_port_is_told_by_its_option(tmp_path, capsys, port):
    assert main(["federation", "--out", str(tmp_path / "out"), "--port", port]) == 2
    assert f"--port {port}: not a port" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_port_whose_connections_have_just_ended_is_free(layout):
    with socket.create_server((LOOPBACK, layout.port)) as server, socket.create_connection((LOOPBACK, layout.port)):
        server.accept()[0].close()  # this end closes first, and stays in TIME_WAIT
    with opened(layout):
        pass


def test_a_full_disk_is_named(layout, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**7, 10**7))
    told = refused(layout, capsys)
    assert "the disk has 10 MB left" in told and "free disk space" in told
    assert not layout.out.exists()


def test_a_federation_that_runs_there_is_left_alone(layout, capsys):
    layout.out.mkdir(parents=True)
    with exclusive(layout.lock):
        told = refused(layout, capsys, "--force")
    assert "a federation runs there" in told
    if sys.platform == "linux":
        assert f"kill {os.getpid()}" in told


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_processes_that_an_earlier_start_left_behind_are_named(layout, capsys):
    layout.out.mkdir(parents=True)
    layout.lock.touch()
    left = subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: str(layout.out)})
    try:
        told = refused(layout, capsys, "--force")
    finally:
        left.kill()
        left.wait()
    assert f"still run: {left.pid} (sleep)" in told
    assert f"kill {left.pid}" in told


def test_a_client_that_was_started_by_hand_is_named(prepared, capsys):
    state = prepared.hospital("site_b") / "state"
    state.mkdir(exist_ok=True)
    with exclusive(state / "client.lock"):
        assert main(command(prepared, "--force")) == 2
    assert "site_b" in capsys.readouterr().err
    assert prepared.key("site_b").exists()


def with_run(layout) -> None:
    """A run is in the folder that has saved a round."""
    with opened(layout):
        (layout.out / "checkpoints").mkdir(parents=True)
        (layout.out / "checkpoints" / "pretrain-0001.safetensors").touch()
        (layout.out / "run.json").write_text("{}")


def test_a_run_that_is_there_is_left_alone(layout, capsys):
    with_run(layout)
    told = refused(layout, capsys)
    assert "holds a run already" in told and "--resume" in told and "--force" in told
    assert (layout.out / "run.json").exists()


def test_force_deletes_the_run_that_is_there(layout):
    with_run(layout)
    with opened(layout, force=True):
        assert [path.name for path in layout.out.iterdir()] == [layout.lock.name]


def test_force_deletes_no_folder_that_is_no_federation(layout, capsys):
    layout.out.mkdir(parents=True)
    (layout.out / "thesis.txt").write_text("years")
    told = refused(layout, capsys, "--force")
    assert "holds something else" in told
    assert (layout.out / "thesis.txt").read_text() == "years"


def test_a_folder_that_cannot_be_made_is_named(layout, capsys):
    layout.out.parent.write_text("a file")
    assert "choose another --out" in refused(layout, capsys)


def test_the_files_of_hospitals_are_valid_as_they_stand():
    for site in SITES:
        values = yaml.safe_load((ROOT / "configs" / f"{site}.yaml").read_text())
        assert values["site"] == site
        found = load_site(ROOT / "configs" / f"{site}.yaml", ["data.made_by=null"])
        assert found.state_dir == ROOT / "runs" / "federation" / "hospitals" / site / "state"
        assert found.limits.studies == ["federation"]
