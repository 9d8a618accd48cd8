"""Messages are worked on by one warm process, with the site's own app, and nothing of a bundle is unpacked."""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import yaml

from client.door.declines import Declines
from client.node import worker
from client.node.child import heard, tell
from client.node.supernode import Pace, _ConnectionTold, flower_arguments
from client.privacy import paid
from client.work import observe
from sites.config import load_site
from tests.client.conftest import declined, limit, make_content
from tests.deployment import Client, SuperLink, hospitals, wait_until
from tests.server.conftest import make_study


def test_what_a_process_tells_is_heard_and_nothing_else(capsys):
    tell("say", "a  sentence\nin two lines")
    assert heard(capsys.readouterr().out.rstrip()) == ("say", "a sentence in two lines")
    assert heard("INFO: something") is None
    assert heard("@other thing") is None
    tell("step", "3 27")
    assert heard(capsys.readouterr().out.rstrip()) == ("step", "3 27")
    for broken in ("@step", "@step 3", "@step three 27", "@step 3 27 1"):
        assert heard(broken) is None


def test_a_person_is_told_once_that_the_coordinator_is_away_and_once_that_it_is_back(capsys):
    told = _ConnectionTold()

    def logged(text):
        told.emit(logging.LogRecord("flwr", logging.WARNING, "", 0, text, (), None))

    told.answers()
    for text in (
        "Connection attempt failed, retrying in 1 seconds",
        "Connection attempt failed, retrying in 2 seconds",
    ):
        logged(text)
    logged("Giving up reconnection after 3 seconds and 2 tries.")  # and it succeeds with another request
    assert told.lost
    told.answers()
    logged("Connection successful after 1 seconds and 2 tries.")
    assert [heard(line)[1] for line in capsys.readouterr().out.splitlines()] == [
        "the coordinator does not answer; trying again until it does",
        "the coordinator answers again",
    ]


def test_waiting_costs_a_tenth_and_an_idle_site_asks_as_rarely_as_flower(monkeypatch):
    slept, clock = [], [0.0]
    monkeypatch.setattr("client.node.supernode.time.sleep", slept.append)
    monkeypatch.setattr("client.node.supernode.time.monotonic", lambda: clock[0])
    pace = Pace()
    for clock[0] in (0.0, 10.0, 600.0):
        pace.sleep(3)
    assert slept == [Pace.shortest_s, 1.0, 3]


def test_a_site_that_shares_its_machine_trains_on_as_many_cores_as_it_says():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        worker._warm_up(1)
        assert torch.get_num_threads() == 1
        worker._warm_up(None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_worker_begins_without_what_the_one_before_left_half_written(site_file, monkeypatch):
    state = site_file.parent / "state"
    left = state / "studies/tiny/abcd" / f".segment-000002.safetensors.{2**22 + 1}.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")

    def warmed_up(threads):
        raise SystemExit

    monkeypatch.setattr(worker, "_warm_up", warmed_up)
    monkeypatch.setattr(worker, "end_with_supervisor", lambda: None)
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit):
        worker.main([str(site_file)])
    assert not left.exists()


def test_freed_memory_goes_back_before_a_round_is_trained_and_after_each_message(tmp_path, monkeypatch):
    from flwr.app import RecordDict

    given = []
    monkeypatch.setattr(worker, "give_back", lambda: given.append("given"))
    metadata = SimpleNamespace(run_id=1, message_type="train")
    with worker._shown(SimpleNamespace(content=RecordDict(), metadata=metadata, has_content=lambda: True), tmp_path):
        for step in (1, 2, 3):
            observe.step_made(step, 3, 0.5)
    assert len(given) == 1
    monkeypatch.setattr(worker, "_work", lambda *_: None)
    worker._take("", "", tmp_path)
    assert len(given) == 2


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
    """Fails when another release of Flower moves what the worker uses; then client/node/worker.py must follow."""
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


def test_objects_that_are_no_message_end_no_worker_and_are_told_on_both_sides(monkeypatch, capsys):
    """A worker that ends loses the data and the trainers of all studies."""
    told = []

    def unreadable(client):
        raise KeyError("a" * 64)

    beats = SimpleNamespace(start=lambda: None, stop=lambda: None)
    client = SimpleNamespace(PushTaskOutput=told.append, close=lambda: None)
    monkeypatch.setattr(worker, "_client", lambda *_: client)
    monkeypatch.setattr(worker.flower, "HeartbeatSender", lambda beat: beats, raising=False)
    monkeypatch.setattr(worker.flower, "pull_task_input", unreadable, raising=False)
    worker._take("127.0.0.1:1", "token", None)
    assert [request.sub_status for request in told] == [worker.flower.SubStatus.FAILED]
    assert "a message cannot be read (KeyError)" in capsys.readouterr().out


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


def test_a_message_that_holds_an_error_in_place_of_a_content_ends_no_worker(monkeypatch, tmp_path):
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    wrong = Message(Error(1, "nothing"), metadata=message.metadata)
    reply = worker._answer(wrong, Context(1, 1, {"site-config": "/none.yaml"}, RecordDict(), {}), tmp_path)
    assert reply.has_error() and "says more" in reply.error.reason


@pytest.fixture
def said(monkeypatch):
    """Lines that the worker tells a person, and a clock that stands still."""
    lines, clock = [], [0.0]
    monkeypatch.setattr("client.door.declines.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(worker, "_declines", Declines(lines.append))
    return SimpleNamespace(lines=lines, clock=clock)


def ask(monkeypatch, site_file, content, kind="train"):
    """What the worker answers to a message for the site."""
    from flwr.app import Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    message = Message(content, dst_node_id=1, message_type=kind)
    return worker._answer(message, Context(1, 1, {"site-config": str(site_file)}, RecordDict(), {}))


def test_declined_work_is_told_at_the_hospital_with_the_reason_that_the_coordinator_is_given(
    fake, site_file, monkeypatch, said
):
    limit(site_file, studies=["another"])
    reply = ask(monkeypatch, site_file, make_content(round=3))
    assert "limits.studies" in declined(reply.content)
    assert said.lines == [f"declined (training segment round 3): {declined(reply.content)}"]


def test_a_mistake_in_the_sites_file_is_told_at_the_hospital_alone(fake, site_file, monkeypatch, said):
    limit(site_file, studys=["another"])
    reply = ask(monkeypatch, site_file, make_content())
    assert "studys" in said.lines[0]
    assert "studys" not in declined(reply.content) and str(site_file.parent) not in declined(reply.content)


def test_limits_and_the_manifest_are_read_anew_when_they_change(fake, site_file, monkeypatch, said):
    reply = ask(monkeypatch, site_file, make_content(arrays=False), "query")
    before = reply.content.metric_records["metrics"]["n_labelled"]
    manifest = site_file.parent / "manifest.csv"
    rows = manifest.read_text().splitlines()
    labelled = next(i for i, row in enumerate(rows) if i and "train" in row and "mask" in row)
    manifest.write_text("\n".join(rows[:labelled] + rows[labelled + 1 :]) + "\n")
    reply = ask(monkeypatch, site_file, make_content(arrays=False), "query")
    assert reply.content.metric_records["metrics"]["n_labelled"] == before - 1
    limit(site_file, studies=["another"])
    assert "limits.studies" in declined(ask(monkeypatch, site_file, make_content(arrays=False), "query").content)


def test_work_that_is_done_is_not_told_as_declined(fake, site_file, monkeypatch, said):
    assert declined(ask(monkeypatch, site_file, make_content()).content) is None
    assert said.lines == []


def test_under_differential_privacy_the_screen_says_no_more_than_the_coordinator_is_told(
    private, site_file, monkeypatch, said
):
    private.site(site_file)
    monkeypatch.setattr("client.work.training.keep_vlm", lambda *_: {}["patient_17"])
    ask(monkeypatch, site_file, make_content())
    assert len(said.lines) == 1 and paid.FAILED in said.lines[0] and "patient_17" not in said.lines[0]


def test_a_reason_that_comes_again_within_a_minute_is_counted(said):
    told = Declines(said.lines.append)
    for said.clock[0] in (0.0, 1.0, 59.0):
        told.declined("answering a query", "no")
    told.declined("answering a query", "never")
    assert said.lines == ["declined (answering a query): no", "declined (answering a query): never"]
    said.clock[0] = 61.0
    told.tell_counts()
    assert said.lines[2:] == ["declined 2 more times in a minute: no"]


def test_reasons_that_quote_what_was_sent_flood_no_screen(said):
    told = Declines(said.lines.append)
    for number in range(1000):
        told.declined("answering a query", f"unknown setting {number}\x1b[2J\n" + "x" * 5000)
    assert len(said.lines) < 30
    assert all(line.isprintable() and len(line) < 600 for line in said.lines)


@pytest.mark.slow
def test_a_study_runs_between_real_processes_and_each_site_uses_one_warm_worker(tmp_path):
    with ExitStack() as stack:
        link = stack.enter_context(SuperLink(tmp_path / "coordinator"))
        clients = hospitals(tmp_path, link, {"alder": 8, "birch": 8}, stack)
        for client in clients:
            client.start()
        wait_until(lambda: len(link.online()) == 2, 120, "two sites")
        workers = [client.children()["client.node.worker"] for client in clients]
        run = link.start_run(study=str(write_study(tmp_path)), out=str(tmp_path / "run"))
        assert link.wait_for_run(run).outcome == "completed"
        assert (tmp_path / "run" / "summary.json").exists()
        for client, number in zip(clients, workers, strict=True):
            assert client.children()["client.node.worker"] == number
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
        os.kill(alder.children()["client.node.worker"], signal.SIGKILL)
        alder.wait_for(r"the worker ended \(signal 9\); starting it again")
        wait_until(lambda: "Sent successfully" in alder.log.rpartition("Receiving: train")[2], 60, "an answer")
        assert link.wait_for_run(run, 290).outcome == "completed"
        assert "segment round 2: 2 of 2 sites" in (tmp_path / "run" / "log.txt").read_text()


def write_study(folder, rounds=2):
    study = make_study(method={"preset": "mean_teacher"}, segment__rounds=rounds, federation__min_sites=1)
    values = {**study.model_dump(mode="json", exclude_unset=True), "simulation": None}
    (folder / "study.yaml").write_text(yaml.safe_dump(values))
    return folder / "study.yaml"
