"""What the SuperLink takes from hospitals: each answers for itself, and no answer is larger than such an answer can be.

Flower checks a call's key against the node that the call names, and not against the sender that the message in it
names; it takes as much as is sent; and an object that arrives a second time, because the reply to the first was lost
with the line, it refuses, after which the sender gives its whole answer up. Here

- a message whose sender is not the node that sent it is refused;
- an answer has a quota, by the kind and the size of the message that it answers, counted as its objects arrive and
  before they are stored; one that goes beyond is let go, and the study hears of an error in its place;
- an object that is there already is taken again, and an answer that stopped in the middle can be announced again, also
  when the study has heard of it;
- a node that sends an answer counts as connected: Flower goes by its heartbeats alone, and after a line that broke the
  next one can come half a minute later than the rest of the answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from feddusss import flower

SMALL_BYTES = 4 * 2**20
"""Of an answer that carries no model: counts and figures, or a small step of secure aggregation."""
TIMES = 4
"""An answer that trains is at most as many times as large as its message: bfloat16 that comes back as masked 64-bit
integers."""
UNKNOWN_BYTES = 2**31
"""Of an answer that trains to a message that this process did not deliver: it was started anew meanwhile."""
_OBJECTS = 64
_BYTES_PER_OBJECT = 2**18
"""Models travel in chunks of megabytes; there are no more objects than this makes, and `_OBJECTS` others."""
_NAME_CHARACTERS = 64
"""Of an object's name, a SHA-256."""
_REMEMBERED = 10_000
"""Messages and answers of which sizes are kept."""
_AT_ONCE = 500
"""Names in one question to the database."""
_ALIVE_EVERY_S = 10.0
"""Between two notes that a node is there: each writes to the database."""
log = logging.getLogger("feddusss.superlink")


def quota(kind: str, bytes_down: int | None) -> int:
    """Bytes that an answer may take, all in all.

    Args:
        kind: of the message: query, train, evaluate.
        bytes_down: size of the message that it answers; None: not known.
    """
    if kind.partition(".")[0] != "train":
        return SMALL_BYTES
    return SMALL_BYTES + (UNKNOWN_BYTES if bytes_down is None else TIMES * bytes_down)


def _most_objects(limit: int) -> int:
    """Of an answer that may take `limit` bytes."""
    return _OBJECTS + limit // _BYTES_PER_OBJECT


@dataclass
class _Upload:
    """An answer that arrives."""

    node: int
    message: Any
    limit: int
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes by object: the most that was sent under its name."""

    def counts(self, request: Any) -> bool:
        """Count an object; False for one that this answer cannot have, of which nothing is kept."""
        name = request.object_id
        if name not in self.sizes and (len(self.sizes) >= _most_objects(self.limit) or len(name) > _NAME_CHARACTERS):
            return False
        self.sizes[name] = max(self.sizes.get(name, 0), len(request.object_content))
        return True


class Intake:
    """Stands before Flower's handlers of what hospitals send. `install` puts it there."""

    def __init__(self, handlers: Any):
        self._pull_messages = handlers.pull_messages
        self._push_messages = handlers.push_messages
        self._push_object = handlers.push_object
        self._down: OrderedDict[str, int] = OrderedDict()
        self._uploads: OrderedDict[str, _Upload] = OrderedDict()
        """By session."""
        self._answers: OrderedDict[str, _Upload] = OrderedDict()
        """By the answer's own name."""
        self._alive: OrderedDict[int, float] = OrderedDict()
        """When it was last noted that a node is there."""
        self._lock = threading.Lock()

    def pull_messages(self, request: Any, state: Any, store: Any) -> Any:
        """A node asks for its next message, whose size is noted."""
        response = self._pull_messages(request, state, store)
        for message, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            size = _stored_bytes(store, {node.object_id for node in _nodes(tree)})
            if size is not None:
                with self._lock:
                    _remember(self._down, message.metadata.message_id, size)
        return response

    def push_messages(self, request: Any, state: Any) -> Any:
        """A node announces an answer: whose it is, and of which objects it will consist."""
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise _refusal(400, "one answer at a time")
        message, tree, node = request.messages_list[0], request.message_object_trees[0], request.node.node_id
        if message.metadata.src_node_id != node:
            log.warning("node %d sent an answer in the name of node %d", node, message.metadata.src_node_id)
            raise _refusal(403, "an answer in the name of another node")
        with self._lock:
            before = self._answers.get(message.metadata.message_id)
            down = self._down.get(message.metadata.reply_to_message_id)
        if before is None:
            found = state.get_valid_message_ins(message.metadata.reply_to_message_id)
            limit = quota(_kind(found) if found is not None else "", down)
        else:
            limit = before.limit
        objects = sum(1 for _ in _nodes(tree))
        if objects > _most_objects(limit):
            raise _refusal(413, f"{objects} objects")
        self._note_alive(node, state)
        response = self._push_messages(request, state)
        if before is not None and before.node == node and not response.objects_to_push:
            self._go_on(response, message.metadata.run_id, tree, state)
        if response.session_id:
            # what has come of it counts on, however often it is announced
            sizes = before.sizes if before is not None and before.node == node else {}
            upload = _Upload(node, message, limit, sizes)
            with self._lock:
                _remember(self._uploads, response.session_id, upload)
                _remember(self._answers, message.metadata.message_id, upload)
        return response

    def _go_on(self, response: Any, run_id: int, tree: Any, state: Any) -> None:
        """Take what an answer still lacks, of which the study has heard: Flower takes it for one to no message."""
        if state.object_store.get(tree.object_id) is None:
            return  # it was fetched as a whole, or given up
        response.session_id = state.start_session(run_id)
        response.objects_to_push.extend(state.preregister_object_tree(tree, response.session_id))

    def push_object(self, request: Any, state: Any) -> Any:
        """A node sends an object of an answer that it has announced."""
        with self._lock:
            upload = self._uploads.get(request.session_id)
            if upload is None or upload.node != request.node.node_id or not upload.counts(request):
                return _not_stored()
            total = sum(upload.sizes.values())
        self._note_alive(upload.node, state)
        if total > upload.limit:
            with self._lock:
                self._uploads.pop(request.session_id, None)
            self._let_go(request.session_id, upload, state)
            raise _refusal(413, f"the answer is larger than {upload.limit} bytes")
        response = self._push_object(request, state)
        if not response.stored and state.object_store.get(request.object_id) == request.object_content:
            response.stored = True
        return response

    def _note_alive(self, node: int, state: Any) -> None:
        """A node sends: that is as good as a heartbeat."""

        now = time.monotonic()
        with self._lock:
            if now - self._alive.get(node, -_ALIVE_EVERY_S) < _ALIVE_EVERY_S:
                return
            _remember(self._alive, node, now)
        state.acknowledge_node_heartbeat(node, flower.HEARTBEAT_DEFAULT_INTERVAL)

    def _let_go(self, session_id: str, upload: _Upload, state: Any) -> None:
        """Delete what has come of an answer, and put an error in its place."""
        kind = upload.message.metadata.message_type
        log.warning("node %d: its answer to a %s is larger than %d bytes", upload.node, kind, upload.limit)
        state._cleanup_push_session(session_id, cleanup_messages=True)
        reason = f"its answer is larger than the {upload.limit} bytes that an answer to '{kind}' can take"
        error, tree, contents = _error_in_place(upload.message, reason)
        session = state.start_session(error.metadata.run_id)
        state.store_message_and_object_tree(error, tree, session)
        for name, content in contents.items():
            state.store_object(error.metadata.run_id, session, name, content)


def install() -> None:
    """Have this process's SuperLink take answers so."""

    intake = Intake(flower.fleet_handlers)
    for name in ("pull_messages", "push_messages", "push_object"):
        flower.stand_in("fleet_handlers", name, getattr(intake, name))


def _error_in_place(message: Any, reason: str) -> tuple[Any, Any, dict[str, bytes]]:
    """The error that stands for an answer, the tree of its objects, and these."""
    from flwr.app import Error

    from server.rounds.replies import TOO_LARGE

    error = flower.make_message(metadata=flower.metadata_from_proto(message.metadata), error=Error(TOO_LARGE, reason))
    flower.name_message(error, "")
    flower.name_message(error, error.object_id)
    contents = {name: part.deflate() for name, part in flower.get_all_nested_objects(error).items()}
    return error, flower.get_object_tree(error), contents


def _kind(found: Any) -> str:
    """The kind of a message as the SuperLink's state has it: a row of the database, or the message."""
    return str(found["message_type"]) if isinstance(found, dict) else str(found.metadata.message_type)


def _nodes(tree: Any) -> Iterable[Any]:
    """All nodes of a tree of objects, without recursion: whoever sends a tree chooses how deep it is."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(node.children)


def _stored_bytes(store: Any, names: set[str]) -> int | None:
    """Bytes of stored objects; of those in a database their contents are not read. None: not all are there yet.

    A node may ask for a message before the study has sent all of it: what it could answer would be taken for too large.
    """
    if not isinstance(store, flower.SqlObjectStore):
        sizes = [len(store.get(name) or b"") for name in names]
        return sum(sizes) if all(sizes) else None
    from sqlalchemy import func, select

    total, there, ordered = 0, 0, sorted(names)
    with store.session() as session:
        for start in range(0, len(ordered), _AT_ONCE):
            some = ordered[start : start + _AT_ONCE]
            size = func.sum(func.length(flower.StoredObject.content))
            found = select(size, func.count()).where(
                flower.StoredObject.object_id.in_(some), func.length(flower.StoredObject.content) > 0
            )
            found_bytes, found_objects = session.execute(found).one()
            total, there = total + (found_bytes or 0), there + found_objects
    return int(total) if there == len(ordered) else None


def _remember(kept: OrderedDict, key: Any, value: Any) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > _REMEMBERED:
        kept.popitem(last=False)


def _not_stored() -> Any:

    return flower.PushObjectResponse(stored=False)


def _refusal(code: int, why: str) -> Exception:
    from fastapi import HTTPException

    return HTTPException(code, why)
