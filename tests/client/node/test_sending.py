"""An answer is sent until all of it has arrived."""

from __future__ import annotations

from types import SimpleNamespace

import httpx
import pytest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.run import RunNotRunningException

from client.node import sending

CONTENTS = {name: name.encode() * 10 for name in "abcdefg"}
TREE = ObjectTree(object_id="g", children=[ObjectTree(object_id=name) for name in "abcdef"])
MESSAGE = SimpleNamespace(metadata=SimpleNamespace(run_id=3))


class Line:
    """A SuperLink behind a line that takes the reply to some pushes with it, and forgets all it has, as a test says."""

    def __init__(self, broken=(), forgets_at=None, error=None):
        self.there: dict[str, bytes] = {}
        self.announced, self.pushed = 0, 0
        self._broken, self._forgets_at, self._error = set(broken), forgets_at, error

    def send(self, message, tree, seconds):
        self.announced += 1
        return set(CONTENTS) - self.there.keys(), f"session {self.announced}"

    def push(self, run, session, name, content):
        assert (run, session) == (3, f"session {self.announced}")
        self.pushed += 1
        if self._error is not None:
            raise self._error
        if self.pushed == self._forgets_at:
            self.there.clear()
            raise ObjectPushError(name, run, session)
        self.there[name] = content
        if self.pushed in self._broken:
            raise ObjectPushError(name, run, session)


WAITS_S = sending.WAITS_S


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sending, "WAITS_S", (0.0,) * 4)


def sent_over(line):
    return sending.until_it_arrives(line.send, line.push, SimpleNamespace(get=CONTENTS.get))(MESSAGE, TREE, 0.1)


@pytest.mark.parametrize("how", [{"broken": [3]}, {"broken": [1, 2, 6]}, {"broken": range(1, 7)}, {"forgets_at": 5}])
def test_an_answer_whose_upload_broke_is_announced_again_and_arrives_whole(how):
    line = Line(**how)
    lacking, _ = sent_over(line)
    assert line.there == CONTENTS and lacking == set()
    assert line.announced > 1


def test_an_answer_that_arrives_at_once_is_announced_once():
    line = Line()
    sent_over(line)
    assert (line.announced, line.pushed, line.there) == (1, 7, CONTENTS)


def test_what_a_worker_that_ended_has_not_written_is_not_waited_for(monkeypatch):
    looks = []
    monkeypatch.setattr(sending.time, "sleep", looks.append)
    message = SimpleNamespace(metadata=SimpleNamespace(run_id=3, reply_to_message_id="asked"))
    store = SimpleNamespace(get=lambda name: b"" if name == "d" else CONTENTS[name])
    line = Line()
    send = sending.until_it_arrives(line.send, line.push, store, lambda name: name == "asked" and len(looks) == 3)
    with pytest.raises(sending.Abandoned):
        send(message, TREE, 0.1)
    assert line.announced == 1 and len(looks) == 3


def test_a_line_that_never_holds_is_given_up_after_some_tries():
    line = Line(error=ObjectPushError("a", 3, "s"))
    with pytest.raises(ObjectPushError):
        sent_over(line)
    assert line.announced == 5


def test_it_is_tried_for_as_long_as_the_superlink_keeps_what_has_come():
    from flwr.supercore.constant import OBJECT_PUSH_SESSION_TTL_SECONDS

    assert sum(WAITS_S) > OBJECT_PUSH_SESSION_TTL_SECONDS
    assert OBJECT_PUSH_SESSION_TTL_SECONDS == 3 * 60  # as docs/reliability.md has it
    assert max(WAITS_S) <= 15  # so soon it goes on once the line is back


@pytest.mark.parametrize(
    "error",
    [
        RunNotRunningException(),
        httpx.HTTPStatusError("413", request=httpx.Request("POST", "https://a"), response=httpx.Response(413)),
    ],
)
def test_what_another_try_does_not_change_is_not_tried_again(error):
    line = Line(error=error)
    with pytest.raises(type(error)):
        sent_over(line)
    assert line.announced == 1
