"""How the coordinator fetches answers: whatever objects a hospital sends, none ends the study."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run

from server.deployment.grid import PatientGrid
from server.rounds.replies import LOST, read_reply
from server.simulation.inprocess import identify


class SuperLink:
    """Hands out one answer, whose objects are `contents`, as Flower's runtime API does."""

    def __init__(self, name: str, tree: ObjectTree, contents: dict[str, bytes]):
        self._announced = SimpleNamespace(metadata=SimpleNamespace(message_id=name, reply_to_message_id="asked")), tree
        self._contents, self.confirmed = contents, []

    def PullMessages(self, request):
        message, tree = self._announced
        return SimpleNamespace(messages_list=[message], message_object_trees=[tree])

    def PullObject(self, request):
        content = self._contents[request.object_id]
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)


def answer(reply_to: str = "asked") -> tuple[str, ObjectTree, dict[str, bytes]]:
    """Name, tree and objects of an answer to a query."""
    identify(1)
    message = Message(RecordDict({"config": ConfigRecord({"site": "alder"})}), 1, "query")
    message.metadata.__dict__["_reply_to_message_id"] = reply_to
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    return message.object_id, get_object_tree(message), contents


def fetched(name, tree, contents):
    link = SuperLink(name, tree, contents)
    grid = PatientGrid(SimpleNamespace(_runtime_client=link, node=Node(node_id=1), run=Run.create_empty(1)))
    (message,) = grid.pull_messages(["asked"])
    assert message.metadata.reply_to_message_id == "asked" and link.confirmed == [name]
    return read_reply("alder", message)


def test_an_answer_that_is_whole_is_read():
    reply = fetched(*answer())
    assert reply.accepted and reply.texts == {"site": "alder"}


def no_message():
    part = ConfigRecord({"site": "alder"})
    return (
        part.object_id,
        get_object_tree(part),
        {name: each.deflate() for name, each in get_all_nested_objects(part).items()},
    )


def without_its_parts():
    """Announced as one object, whose content names others."""
    name, _, contents = answer()
    return name, ObjectTree(object_id=name), contents


def garbage():
    name, _, contents = answer()
    head = contents[name].split(b"\x00")[0]
    kind, _, _ = head.decode().split(" ")
    body = b"\xff" * 5
    return name, ObjectTree(object_id=name), {name: f"{kind}  {len(body)}".encode() + b"\x00" + body}


@pytest.mark.parametrize("objects", [no_message, without_its_parts, garbage, lambda: answer("of another site")])
def test_objects_that_are_no_answer_are_refused_by_name_and_end_no_study(objects):
    reply = fetched(*objects())
    assert not reply.accepted and reply.kind != LOST
    assert "its answer cannot be read" in reply.reason
