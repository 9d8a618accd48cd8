"""A node that has a key and says what a test tells it to say, call by call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from tests.deployment import SuperLink, wait_until


class HostileNode:
    """A node of a SuperLink; `id` is its own."""

    def __init__(self, client: FleetHttpClient, public_key: bytes):
        self.client = client
        request = ActivateNodeRequest(public_key=public_key, heartbeat_interval=60)
        self.id = client.ActivateNode(request).node_id

    def asked(self) -> Message:
        """The next message that comes."""

        def pulled():
            found = self.client.PullMessages(PullMessagesRequest(node=Node(node_id=self.id))).messages_list
            return message_from_proto(found[0]) if found else None

        return wait_until(pulled, 60, "a message", every_s=0.2)

    def announce(self, answer: Message, objects: dict):
        """Announce an answer; what the SuperLink says."""
        answer.metadata.__dict__["_message_id"] = answer.object_id
        objects |= get_all_nested_objects(answer)
        tree = get_object_tree(answer)
        proto = message_to_proto(answer)
        proto.content.Clear()
        request = PushMessagesRequest(
            node=Node(node_id=self.id),
            messages_list=[proto],
            message_object_trees=[tree],
            clientapp_runtime_list=[0.1],
        )
        return self.client.PushMessages(request)

    def push(self, run_id: int, session: str, objects: dict, names: Iterable[str]) -> Iterator[bool]:
        """Send objects; whether each was stored."""
        for name in names:
            request = PushObjectRequest(
                node=Node(node_id=self.id),
                run_id=run_id,
                object_id=name,
                object_content=objects[name].deflate(),
                session_id=session,
            )
            yield self.client.PushObject(request).stored


def introduction(asked: Message, name: str, megabytes: int = 0) -> Message:
    """An answer to a query, with so many bytes that nobody asked for."""
    content = RecordDict({"config": ConfigRecord({"site": name, "role": "train"})})
    if megabytes:
        content["x"] = ArrayRecord({"x": Array("uint8", (1,), "numpy.ndarray", bytes_of(megabytes))})
    return Message(content, reply_to=asked)


def bytes_of(megabytes: int) -> bytes:
    """Bytes of which no two chunks are alike."""
    return b"".join(number.to_bytes(8, "little") * (2**20 // 8) for number in range(megabytes))


@contextmanager
def hostile_node(link: SuperLink, name: str, key: Path) -> Iterator[HostileNode]:
    """Register the key of `name`, and connect with it."""
    from client.secure.keys import make_key, public_path

    make_key(key, name)
    link.register(name, public_path(key))
    private = load_ssh_private_key(key.read_bytes(), None)
    signed = [RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(private, private.public_key())]
    with FleetHttpClient.from_server_address(link.address, False, str(link.certificate), signed) as client:
        yield HostileNode(client, public_key_to_bytes(private.public_key()))
