"""The study's process fetches what is whole, waits for nothing else, and takes no answer larger than it can be."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from server.deployment.grid import PatientGrid
from server.deployment.intake import SMALL_BYTES
from server.rounds.exchange import exchange
from server.rounds.replies import TOO_LARGE, read_reply
from server.simulation.inprocess import identify

ALDER, BIRCH = 3, 5


class SuperLink:
    """Flower's grid and the SuperLink behind it: nodes have announced their answers, of which a part may have come."""

    def __init__(self):
        identify(1)
        self.node, self.run = Node(node_id=1), SimpleNamespace(run_id=1)
        self._runtime_client = self
        self.answers: dict[int, RecordDict] = {}
        """What each node answers."""
        self.lacking: dict[int, int] = {}
        """How many objects of a node's answer have not come, of those that come last."""
        self.gone = False
        """It keeps nothing of an answer that has not come whole."""
        self.pulled = 0
        """Bytes that the study has fetched."""
        self.confirmed: list[str] = []
        self._asked: dict[str, Message] = {}
        self._contents: dict[str, bytes] = {}
        self._order: dict[int, list[str]] = {}

    def push_messages(self, messages):
        names = []
        for message in messages:
            name = f"m{message.metadata.dst_node_id}"
            message.metadata.__dict__["_message_id"] = name
            self._asked[name] = message
            names.append(name)
        return names

    def PullMessages(self, request):
        told = PullAppMessagesResponse()
        for name in [name for name in request.message_ids if name in self._asked]:
            asked = self._asked.pop(name)
            node = asked.metadata.dst_node_id
            answer = Message(self.answers[node], reply_to=asked)
            answer.metadata.__dict__["_message_id"] = answer.object_id
            objects = get_all_nested_objects(answer)
            self._contents |= {key: part.deflate() for key, part in objects.items()}
            self._order[node] = list(objects)
            proto = message_to_proto(answer)
            proto.content.Clear()
            told.messages_list.append(proto)
            told.message_object_trees.append(get_object_tree(answer))
        return told

    def PullObject(self, request):
        late = {name for node, many in self.lacking.items() for name in self._order[node][-many:]}
        if request.object_id in late:
            return PullObjectResponse(object_found=not self.gone, object_available=False)
        content = self._contents[request.object_id]
        self.pulled += len(content)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)


def introduction(site: str, megabytes: int = 0) -> RecordDict:
    """What a site answers to a query, with so many bytes that nobody asked for."""
    content = RecordDict({"config": ConfigRecord({"site": site}), "metrics": MetricRecord({"n_labelled": 3})})
    if megabytes:
        data = b"".join(number.to_bytes(8, "little") * 2**17 for number in range(megabytes))
        content["more"] = ArrayRecord({"x": Array("uint8", (len(data),), "numpy.ndarray", data)})
    return content


def asked(link: SuperLink, seconds: float = 1.0):
    """What the study hears of a query to both nodes (node -> message), and the nodes that are silent."""
    heard: dict[int, Message] = {}
    content = RecordDict({"config": ConfigRecord({"round": 0})})
    messages = {node: Message(content, node, "query") for node in (ALDER, BIRCH)}
    silent = exchange(PatientGrid(link), messages, seconds, heard.__setitem__)
    return heard, silent


@pytest.fixture
def link():
    link = SuperLink()
    link.answers = {ALDER: introduction("alder"), BIRCH: introduction("birch")}
    return link


def test_whole_answers_arrive_as_they_were_sent_and_the_superlink_may_delete_them(link):
    heard, silent = asked(link)
    assert not silent and len(link.confirmed) == 2
    assert {node: read_reply("x", message).texts["site"] for node, message in heard.items()} == {
        ALDER: "alder",
        BIRCH: "birch",
    }


def test_an_answer_beyond_its_quota_is_refused_by_name_in_the_studys_process_too(link):
    """As with a SuperLink that is Flower's own, which takes as much as is sent."""
    link.answers[ALDER] = introduction("alder", 40)
    heard, silent = asked(link)
    assert not silent and heard[ALDER].error.code == TOO_LARGE
    told = read_reply("alder", heard[ALDER])
    assert told.reason == f"its answer is larger than the {SMALL_BYTES} bytes that it can take" and not told.kind
    assert read_reply("birch", heard[BIRCH]).accepted
    # no more than the two pieces that are fetched at a time go beyond it
    assert link.pulled < 20 * 2**20 and len(link.confirmed) == 2


@pytest.mark.parametrize("lacking", [1, 2])
def test_an_upload_that_stopped_neither_outlasts_the_deadline_nor_holds_up_the_others(link, lacking):
    link.lacking = {ALDER: lacking}
    began = time.monotonic()
    heard, silent = asked(link, seconds=0.3)
    assert time.monotonic() - began < 10  # Flower's own grid waits for two hours
    assert list(silent) == [ALDER] and read_reply("birch", heard[BIRCH]).accepted and len(heard) == 1


def test_the_rest_of_an_upload_is_waited_for_until_the_deadline(link):
    link.lacking = {ALDER: 2}
    pull, looks = link.PullObject, []

    def later(request):
        looks.append(request.object_id)
        if len(looks) > 8:
            link.lacking = {}
        return pull(request)

    link.PullObject = later
    heard, silent = asked(link, seconds=20)
    assert not silent and read_reply("alder", heard[ALDER]).texts["site"] == "alder"


def test_an_upload_that_the_superlink_has_let_go_is_an_answer_that_is_lost(link):
    link.lacking, link.gone = {ALDER: 1}, True
    heard, silent = asked(link)
    lost = read_reply("alder", heard[ALDER])
    assert not silent and lost.kind == "lost" and "its upload stopped in the middle" in lost.reason
    assert read_reply("birch", heard[BIRCH]).accepted
