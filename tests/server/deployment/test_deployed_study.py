"""Real processes on loopback: SuperLink with TLS, keys and database, clients of two hospitals, `python -m server run`.

Promise 3: the weights of the simulation. Promise 2: the SuperLink killed amid a round, and the run resumed.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import urllib.request
from contextlib import contextmanager

import pytest
import torch

from feddusss.monitoring import start
from server.deployment.watching import Collector
from server.runs.checkpoints import read_model
from server.runs.events import Reporter
from server.simulation.simulate import simulate
from tests.deployment import wait_until
from tests.server.conftest import make_study
from tests.server.deployed import Federation, federation, metrics, wait_for_event

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def study():
    return make_study(study="deployed", segment__rounds=3, pretrain__rounds=1, federation={"sites": ["alder", "birch"]})


@pytest.fixture(scope="module")
def there(study, tmp_path_factory):
    with federation(tmp_path_factory.mktemp("federation"), study) as there:
        there.start_clients()
        yield there


@pytest.fixture(scope="module")
def simulated(study, tmp_path_factory):
    """The final models of the study, simulated in this process."""
    out = tmp_path_factory.mktemp("simulated")
    simulate(study, out, reporter=Reporter())
    return models(out)


@contextmanager
def scraped(coordinator):
    """What Prometheus sees of it."""
    server = start(Collector(coordinator), 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as page:
            yield page.read().decode()
    finally:
        server.shutdown()


def models(out):
    return {name: read_model(out / "checkpoints" / f"{name}.safetensors") for name in ("vlm", "student")}


def assert_same(found, wanted):
    for name in ("vlm", "student"):
        assert found[name].keys() == wanted[name].keys()
        for key, tensor in wanted[name].items():
            torch.testing.assert_close(found[name][key], tensor, rtol=1e-5, atol=1e-6, msg=f"{name}: {key}")


def test_real_processes_give_the_weights_of_the_simulation(there: Federation, simulated, tmp_path):
    told = there.run_to_end(tmp_path / "run")
    assert_same(models(tmp_path / "run"), simulated)
    for words in ("was submitted", "pretrain   1:", "segment   3:", "test: mean Dice", "done in"):
        assert words in told
    assert (tmp_path / "run" / "report.html").is_file()
    assert "Traceback" not in told


def test_a_superlink_killed_amid_a_round_costs_that_round_alone(there: Federation, simulated, tmp_path):
    out = tmp_path / "run"
    first = there.run(out)
    try:
        wait_for_event(out, "on_round_start", lambda arguments: arguments[:2] == ["segment", 2])
        wait_for_event(out, "on_site_start")
        there.link.kill()
        saved = sorted(path.name for path in (out / "checkpoints").glob("segment-*"))
        assert saved == ["segment-0001.safetensors"]
        there.link.start()
        assert first.wait(120) == 1  # upon which the study's unit gives the next command
    finally:
        first.end()
    told = there.run_to_end(out, "--resume")
    assert "segment: from round 2 of 3" in told
    assert_same(models(out), simulated)
    trained = [(line["phase"], line["round"]) for line in metrics(out) if line["site"] == "alder" and "train" in line]
    assert trained == [("pretrain", 1), ("segment", 1), ("segment", 2), ("segment", 3)]


def test_whoever_looks_on_can_leave_come_back_and_stop_the_run(there: Federation, tmp_path):
    out = tmp_path / "run"
    many = "segment.rounds=50"
    looker = there.run(out, "--set", many)
    try:
        wait_for_event(out, "on_round_start")
        looker.signal(signal.SIGINT)
        assert looker.wait(60) == 130
        assert f"stop it:        python -m server stop {out}" in looker.output
        refused = there.told("run", there.study_file, "--out", out, "--resume", "--set", many)
        assert "error: " in refused and "a study is running there" in refused
    finally:
        looker.end()
    listed = there.told("status")
    assert str(out) in listed and "deployed" in listed and "running" in listed
    assert "alder" in there.told("status", out)
    nodes = there.told("nodes")
    assert nodes.count("online") == 2 and nodes.count("SHA256:") == 2
    [told] = [run for run in json.loads(there.told("status", "--json"))["runs"] if run["folder"] == str(out)]
    assert told["state"] == "running" and told["study"] == "deployed" and set(told["sites"]) == {"alder", "birch"}
    assert {site["site"]: site["state"] for site in json.loads(there.told("nodes", "--json"))["sites"]} == {
        "alder": "online", "birch": "online"
    }  # fmt: skip
    with scraped(there.link.folder) as page:
        named = f'run="{told["run"]}",study="deployed"'
        assert "feddusss_superlink_up 1.0" in page and 'feddusss_site_connected{site="birch"} 1.0' in page
        assert f"feddusss_run_running{{{named}}} 1.0" in page
        assert re.search(
            r'feddusss_rounds\{phase="pretrain",[^}]*\} 1\.0|feddusss_rounds\{phase="segment",[^}]*\} 50', page
        )
    stopped = there.told("stop", out)
    assert "is stopped" in stopped
    # at once, as a person would, and as it stands there
    command = shlex.split(stopped.partition("go on with it: ")[2])[3:]
    again = there.server(*command, log="again")
    try:
        wait_until(
            lambda: "was submitted" in again.output and "resuming the run" in again.output, 240, "the resumed run"
        )
        assert "stopped" in there.told("stop", out)
    finally:
        again.end()
    assert "stopped" in there.told("status", out, "--follow")
    assert "has ended already" in there.told("stop", out)
