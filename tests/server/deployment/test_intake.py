"""Each hospital answers for itself, no answer is larger than it can be, and a line that breaks loses none."""

from __future__ import annotations

import hashlib
import json
import time
from types import SimpleNamespace

import httpx
import pytest
from fastapi import HTTPException
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.fab import Fab

from server.deployment import intake as intake_module
from server.deployment.intake import SMALL_BYTES, TIMES, UNKNOWN_BYTES, Intake, _stored_bytes, quota
from tests.deployment import SuperLink, processes_with, wait_until
from tests.server import asking_app
from tests.server.deployed import OURS
from tests.server.hostile_node import hostile_node, introduction

OTHERS = ("flower-superlink",)


class Handlers:
    """Stands in for Flower's handlers and state: remembers what reached them."""

    def __init__(self, kind: str = "query"):
        self.kind, self.there, self.let_go, self.alive = kind, {}, [], []
        self.object_store = SimpleNamespace(get=self.there.get)

    def pull_messages(self, request, state, store):
        raise NotImplementedError

    def push_messages(self, request, state):
        return PushMessagesResponse(session_id="s")

    def push_object(self, request, state):
        new = request.object_id not in self.there
        self.there.setdefault(request.object_id, request.object_content)
        return PushObjectResponse(stored=new)

    def get_valid_message_ins(self, message_id):
        return {"message_type": self.kind}

    def acknowledge_node_heartbeat(self, node, interval):
        self.alive.append(node)

    def start_session(self, run_id):
        return "error"

    def store_message_and_object_tree(self, message, tree, session):
        self.let_go.append((message.metadata.reply_to_message_id, message.error.reason))

    def store_object(self, run_id, session, name, content):
        return True

    def _cleanup_push_session(self, session, *, cleanup_messages):
        assert cleanup_messages
        self.there.clear()


def announced(sender=7, node=7, objects=1):
    request = PushMessagesRequest(node=Node(node_id=node))
    message = request.messages_list.add()
    message.metadata.src_node_id, message.metadata.dst_node_id = sender, 1
    message.metadata.reply_to_message_id, message.metadata.message_type = "asked", "query"
    message.metadata.run_id, message.metadata.ttl, message.metadata.created_at = 1, 60, 1.8e9
    request.message_object_trees.append(ObjectTree(object_id="0", children=[ObjectTree() for _ in range(objects - 1)]))
    return request


def sent(name="a", size=10, node=7, session="s"):
    return PushObjectRequest(
        node=Node(node_id=node), run_id=1, object_id=name, object_content=b"x" * size, session_id=session
    )


def test_an_answer_in_the_name_of_another_node_is_refused():
    handlers = Handlers()
    intake = Intake(handlers)
    with pytest.raises(HTTPException) as refused:
        intake.push_messages(announced(sender=8), handlers)
    assert refused.value.status_code == 403
    assert intake.push_messages(announced(), handlers).session_id == "s"


def test_objects_of_another_nodes_answer_or_of_no_answer_are_not_stored():
    handlers = Handlers()
    intake = Intake(handlers)
    intake.push_messages(announced(), handlers)
    assert not intake.push_object(sent(node=8), handlers).stored
    assert not intake.push_object(sent(session="other"), handlers).stored
    assert not intake.push_object(sent(session=""), handlers).stored
    assert handlers.there == {}
    assert intake.push_object(sent(), handlers).stored


def test_an_answer_that_goes_beyond_its_quota_is_let_go_and_an_error_stands_for_it():
    handlers = Handlers()
    intake = Intake(handlers)
    intake.push_messages(announced(), handlers)
    for number in range(4):
        assert intake.push_object(sent(str(number), SMALL_BYTES // 4), handlers).stored
    with pytest.raises(HTTPException) as refused:
        intake.push_object(sent("last", 1), handlers)
    assert refused.value.status_code == 413 and handlers.there == {}
    told = f"its answer is larger than the {SMALL_BYTES} bytes that an answer to 'query' can take"
    assert handlers.let_go == [("asked", told)]
    assert not intake.push_object(sent("more", 1), handlers).stored


def test_a_quota_is_not_won_back_by_sending_less_under_a_name_or_by_announcing_anew():
    handlers = Handlers()
    intake = Intake(handlers)
    intake.push_messages(announced(), handlers)
    for name in "abcd":
        assert intake.push_object(sent(name, SMALL_BYTES // 4), handlers).stored
        assert not intake.push_object(sent(name, 0), handlers).stored
    intake.push_messages(announced(), handlers)
    with pytest.raises(HTTPException) as refused:
        intake.push_object(sent("last", 1), handlers)
    assert refused.value.status_code == 413 and handlers.there == {}


def test_countless_empty_objects_and_endless_names_fill_no_memory():
    handlers = Handlers()
    intake = Intake(handlers)
    intake.push_messages(announced(), handlers)
    assert not intake.push_object(sent("n" * 10**6, 0), handlers).stored
    stored = sum(intake.push_object(sent(str(number), 0), handlers).stored for number in range(1000))
    assert 0 < stored < 100 and len(intake._uploads["s"].sizes) == stored


def test_an_answer_of_countless_objects_is_refused_before_any_is_noted():
    handlers = Handlers()
    with pytest.raises(HTTPException):
        Intake(handlers).push_messages(announced(objects=200), handlers)


def test_what_arrives_again_since_its_reply_was_lost_is_taken():
    handlers = Handlers()
    intake = Intake(handlers)
    intake.push_messages(announced(), handlers)
    assert [intake.push_object(sent(), handlers).stored for _ in range(3)] == [True] * 3
    assert not intake.push_object(sent(size=11), handlers).stored  # another content under the same name


def test_who_sends_an_answer_counts_as_connected_and_is_not_noted_at_every_object(monkeypatch):
    handlers, clock = Handlers(), [100.0]
    monkeypatch.setattr(intake_module.time, "monotonic", lambda: clock[0])
    intake = Intake(handlers)
    intake.push_messages(announced(), handlers)
    assert handlers.alive == [7]
    intake.push_object(sent("a"), handlers)
    assert handlers.alive == [7]
    clock[0] += 25  # the line was away
    intake.push_object(sent("b"), handlers)
    intake.push_object(sent("c"), handlers)
    assert handlers.alive == [7, 7]
    clock[0] += 25
    intake.push_object(sent("d", node=8), handlers)  # not that node's answer
    with pytest.raises(HTTPException):
        intake.push_messages(announced(sender=7, node=8), handlers)
    assert handlers.alive == [7, 7]


@pytest.mark.parametrize(
    ("kind", "down", "bytes_up"),
    [
        ("query", 10**9, SMALL_BYTES),
        ("evaluate", 10**9, SMALL_BYTES),
        ("", None, SMALL_BYTES),
        ("train", 10**6, SMALL_BYTES + TIMES * 10**6),
        ("train", None, SMALL_BYTES + UNKNOWN_BYTES),
    ],
)
def test_a_quota_is_by_the_kind_and_the_size_of_the_message(kind, down, bytes_up):
    assert quota(kind, down) == bytes_up


# A real SuperLink.


def start(link: SuperLink, out, **settings) -> int:
    """Start the study that asks; its run."""
    app = out.parent / f"app-{out.stem}"
    app.mkdir()
    (app / "pyproject.toml").write_text(asking_app.PYPROJECT)
    content = build_fab_from_disk(app)
    fab = fab_to_proto(Fab("", content, {}))
    request = StartRunRequest(fab=fab, override_config=user_config_to_proto({"out": str(out), **settings}))
    with link.control() as control:
        return control._client.StartRun(request).run_id


def heard(out) -> dict:
    return json.loads(wait_until(lambda: out.exists() and out.read_text(), 150, "what the study was told"))


def flood(tmp_path, command, megabytes, patient) -> tuple[dict, float]:
    """A site answers a query with megabytes; what the study heard, and the SuperLink's peak of memory in MB."""
    with SuperLink(tmp_path / "link", command=command) as link, hostile_node(link, "birch", tmp_path / "key") as node:
        start(link, tmp_path / "out.json", nodes=1, patient=patient, seconds=200)
        asked, objects = node.asked(), {}
        reply = node.announce(introduction(asked, "birch", megabytes), objects)
        try:
            for _ in node.push(asked.metadata.run_id, reply.session_id, objects, reply.objects_to_push):
                pass
        except httpx.HTTPStatusError as refused:
            assert refused.response.status_code == 413
        told = heard(tmp_path / "out.json")
        (pid,) = [pid for name, pid in processes_with(str(link.port)).items() if name in (*OURS, *OTHERS)]
        return told, asking_app.peak_mb(pid)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_huge_answer_to_a_query_is_refused_by_name_and_fills_no_memory(tmp_path):
    told, peak = flood(tmp_path, OURS, 200, patient=1)
    ((_, reply),) = told["heard"].items()
    assert "larger than the" in reply["reason"]
    print(f"SuperLink {peak:.0f} MB, ServerApp {told['peak_mb']:.0f} MB")
    assert peak < 400 and told["peak_mb"] < 400


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_hospital_cannot_answer_for_another(tmp_path):
    with (
        SuperLink(tmp_path / "link", command=OURS) as link,
        hostile_node(link, "alder", tmp_path / "alder.key") as alder,
        hostile_node(link, "birch", tmp_path / "birch.key") as birch,
    ):
        start(link, tmp_path / "out.json", nodes=2, seconds=30)
        to_alder, to_birch = alder.asked(), birch.asked()
        with pytest.raises(httpx.HTTPStatusError) as refused:
            birch.announce(introduction(to_alder, "mallory"), {})
        assert refused.value.response.status_code == 403
        for node, asked, name in ((alder, to_alder, "alder"), (birch, to_birch, "birch")):
            objects: dict = {}
            reply = node.announce(introduction(asked, name), objects)
            assert all(node.push(asked.metadata.run_id, reply.session_id, objects, reply.objects_to_push))
        told = heard(tmp_path / "out.json")["heard"]
        assert all(reply["reason"] is None for reply in told.values()), told
        assert {node: reply["texts"]["site"] for node, reply in told.items()} == {
            str(alder.id): "alder",
            str(birch.id): "birch",
        }


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("goes_on", [False, True])
def test_an_upload_that_stops_in_the_middle_holds_up_no_other_answer_and_can_go_on(tmp_path, goes_on):
    with (
        SuperLink(tmp_path / "link", command=OURS) as link,
        hostile_node(link, "alder", tmp_path / "alder.key") as alder,
        hostile_node(link, "birch", tmp_path / "birch.key") as birch,
    ):
        start(link, tmp_path / "out.json", nodes=2, seconds=40 if goes_on else 20)
        asked, objects = alder.asked(), {}
        slow = introduction(asked, "alder", 3)
        reply = alder.announce(slow, objects)
        names = list(reply.objects_to_push)
        assert all(alder.push(asked.metadata.run_id, reply.session_id, objects, names[: len(names) // 2]))
        time.sleep(3)  # the study has heard of it
        to_birch, others = birch.asked(), {}
        quick = birch.announce(introduction(to_birch, "birch"), others)
        assert all(birch.push(to_birch.metadata.run_id, quick.session_id, others, quick.objects_to_push))
        if goes_on:
            again = alder.announce(slow, objects)
            assert set(again.objects_to_push) == set(names[len(names) // 2 :])
            assert all(alder.push(asked.metadata.run_id, again.session_id, objects, again.objects_to_push))
        told = heard(tmp_path / "out.json")
        assert told["heard"][str(birch.id)]["after_s"] < 15, told
        assert told["silent"] == ([] if goes_on else [alder.id]), told
        assert goes_on or 19 < told["took_s"] < 30
        # what it carries was not asked for, but it came as a whole
        assert not goes_on or told["heard"][str(alder.id)]["reason"] == "sent tensors that nobody asked for"


@pytest.mark.parametrize("come", [0, 1, 2])
def test_a_message_of_which_not_all_has_come_bounds_no_answer_by_what_there_is(tmp_path, come):
    from flwr.supercore.object_store.sql_object_store import SqlObjectStore, StoredObject
    from sqlalchemy import update

    store = SqlObjectStore(str(tmp_path / "store.db"))
    store.initialize()
    contents = [b"a" * 1000, b"b" * 500]
    names = [hashlib.sha256(content).hexdigest() for content in contents]
    store.preregister(1, ObjectTree(object_id=names[0], children=[ObjectTree(object_id=names[1])]))
    for name, content in list(zip(names, contents, strict=True))[:come]:
        with store.session() as session:
            session.execute(update(StoredObject).where(StoredObject.object_id == name).values(content=content))
    assert _stored_bytes(store, set(names)) == (1500 if come == 2 else None)
    plain = SimpleNamespace(get=dict(zip(names[:come], contents, strict=False)).get)
    assert _stored_bytes(plain, set(names)) == (1500 if come == 2 else None)
