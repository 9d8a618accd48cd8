"""Messages are worked on by one warm process, with the site's own app, and nothing of a bundle is unpacked."""

from __future__ import annotations

import inspect
import os
import re
import signal
from contextlib import ExitStack

import pytest
import yaml

from client import worker
from client.child import heard, tell
from client.supernode import Pace, flower_arguments
from sites.config import load_site
from tests.deployment import Client, SuperLink, hospitals, wait_until
from tests.server.conftest import make_study


def test_what_a_process_tells_is_heard_and_nothing_else(capsys):
    tell("say", "a  sentence\nin two lines")
    assert heard(capsys.readouterr().out.rstrip()) == ("say", "a sentence in two lines")
    assert heard("INFO: something") is None
    assert heard("@other thing") is None


def test_waiting_costs_a_tenth_and_an_idle_site_asks_as_rarely_as_flower(monkeypatch):
    slept, clock = [], [0.0]
    monkeypatch.setattr("client.supernode.time.sleep", slept.append)
    monkeypatch.setattr("client.supernode.time.monotonic", lambda: clock[0])
    pace = Pace()
    for clock[0] in (0.0, 10.0, 600.0):
        pace.sleep(3)
    assert slept == [Pace.shortest_s, 1.0, 3]


def test_the_supernode_starts_no_process_and_listens_on_loopback_alone(tmp_path):
    (tmp_path / "site.yaml").write_text(
        "site: a\ndata: {manifest: m.csv}\nstate_dir: s\n"
        "superlink: {address: 'example.org:443', root_certificates: ca.crt, private_key: key}\n"
    )
    arguments = flower_arguments(load_site(tmp_path / "site.yaml"), tmp_path / "site.yaml")
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert given["--isolation"] == "process" and given["--host"] == "127.0.0.1"
    assert given["--auth-supernode-private-key"] == str(tmp_path / "key")
    assert given["--node-config"] == f'site-config="{tmp_path / "site.yaml"}"'
    secret = tmp_path / "s" / "flwr" / "secret"
    assert secret.stat().st_mode & 0o077 == 0 and len(secret.read_bytes()) == 32


def test_flower_still_hands_out_messages_as_the_worker_asks_for_them():
    """Fails when another release of Flower moves what the worker uses; then client/worker.py must follow."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.runtime import run_clientapp

    for name, parameters in {
        "pull_task_input": ["client"],
        "push_message": ["client", "message", "context"],
        "push_task_output": ["client", "context", "sub_status", "details"],
    }.items():
        assert list(inspect.signature(getattr(run_clientapp, name)).parameters) == parameters
    assert {"state", "object_store"} <= set(inspect.signature(start_client_internal._push_messages).parameters)
    # `Pace` stands in for the whole module `time`
    assert set(re.findall(r"\btime\.(\w+)", inspect.getsource(start_client_internal))) == {"sleep"}


def test_the_error_of_an_app_travels_without_its_text(monkeypatch):
    from flwr.app import Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    import client.app

    def fails(message, context):
        raise OSError("/data/patient_17.png")

    monkeypatch.setattr(client.app, "app", fails)
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    message = Message(RecordDict(), dst_node_id=1, message_type="query")
    reply = worker._answer(message, Context(1, 1, {}, RecordDict(), {}))
    assert reply.error.reason == "OSError; the site's own log says more"


@pytest.mark.slow
def test_a_study_runs_between_real_processes_and_each_site_uses_one_warm_worker(tmp_path):
    with ExitStack() as stack:
        link = stack.enter_context(SuperLink(tmp_path / "coordinator"))
        clients = hospitals(tmp_path, link, {"alder": 8, "birch": 8}, stack)
        for client in clients:
            client.start()
        wait_until(lambda: len(link.online()) == 2, 120, "two sites")
        workers = [client.children()["client.worker"] for client in clients]
        run = link.start_run(study=str(write_study(tmp_path)), out=str(tmp_path / "run"))
        assert link.wait_for_run(run).outcome == "completed"
        assert (tmp_path / "run" / "summary.json").exists()
        for client, number in zip(clients, workers, strict=True):
            assert client.children()["client.worker"] == number
            # no bundle was ever unpacked: Flower puts them into FLWR_HOME/apps
            assert not list(client.state_dir.rglob("pyproject.toml"))
            assert client.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_that_dies_in_a_round_is_replaced_and_the_study_completes(tmp_path):
    with ExitStack() as stack:
        link = stack.enter_context(SuperLink(tmp_path / "coordinator"))
        clients = hospitals(tmp_path, link, {"alder": 8, "birch": 8}, stack)
        for client in clients:
            client.start()
        wait_until(lambda: len(link.online()) == 2, 120, "two sites")
        alder: Client = clients[0]
        run = link.start_run(study=str(write_study(tmp_path)), out=str(tmp_path / "run"))
        wait_until(lambda: "Receiving: train" in alder.log, 120, "alder's first round")
        os.kill(alder.children()["client.worker"], signal.SIGKILL)
        alder.wait_for(r"the worker ended \(signal 9\); starting it again")
        wait_until(lambda: "Sent successfully" in alder.log.rpartition("Receiving: train")[2], 60, "an answer")
        assert link.wait_for_run(run, 290).outcome == "completed"
        assert "segment round 2: 2 of 2 sites" in (tmp_path / "run" / "log.txt").read_text()


def write_study(folder, rounds=2):
    study = make_study(method={"preset": "mean_teacher"}, segment__rounds=rounds, federation__min_sites=1)
    values = {**study.model_dump(mode="json", exclude_unset=True), "simulation": None}
    (folder / "study.yaml").write_text(yaml.safe_dump(values))
    return folder / "study.yaml"
