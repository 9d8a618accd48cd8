"""A message's way through the client can be read: at most twenty-one stays, and no room is entered a third time."""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path
from types import FrameType

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import app
from tests.client.conftest import make_content

ROOT = Path(__file__).parents[2]
MOST_STAYS, MOST_ENTRIES = 21, 2
NOT_FOLLOWED = {
    # asked for something without the message
    ("client/state/store.py", "locked"),
    ("client/state/store.py", "__init__"),
    ("client/door/machine.py", "held"),
    ("client/work/workbench.py", "split"),
    # a line in a log
    ("client/door/audit.py", "record"),
    ("client/state/store.py", "write_log"),
    ("client/state/chain.py", "sha256"),
    # after each step: the hours, and whoever looks on
    ("client/work/workbench.py", "_step_made"),
}
"""Functions that a reader need not look into to know what becomes of the message, with all that they call."""


class Way:
    """The stays of what runs while it is open: (file, function) for each stretch of lines in one file of `client/`."""

    def __init__(self):
        self.stays: list[tuple[str, str]] = []
        self.entered: list[str] = []
        """Rooms, each time that one is called from another."""
        self._frames: list[FrameType] = []

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _called(self, frame, event, argument):
        file, caller = _file(frame), frame.f_back
        if file is None:
            return None
        if frame in self._frames:  # the end of a `with` block, whose beginning was followed
            frame.f_trace = None
            return None
        while caller is not None:
            if (_file(caller), caller.f_code.co_name) in NOT_FOLLOWED:
                return None
            caller = caller.f_back
        if (file, frame.f_code.co_name) in NOT_FOLLOWED:
            return None
        self._frames.append(frame)
        if self.stays and _room(file) != _room(self.stays[-1][0]):
            self.entered.append(_room(file))
        return self._line

    def _line(self, frame, event, argument):
        if event == "line":
            self.stays.append((_file(frame), frame.f_code.co_name))
        return self._line


def _file(frame) -> str | None:
    path = Path(frame.f_code.co_filename)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT / "client") else None


def _room(file: str) -> str:
    return Path(file).parent.as_posix()


@pytest.fixture
def way(fake, site_file, monkeypatch):
    """The way of the second round's message, as a hospital's warm worker takes it."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    context = Context(1, 1, {"site-config": str(site_file)}, RecordDict(), {})
    for round in (1, 2):
        message = Message(make_content(round=round), 1, "train")
        message.metadata.__dict__["_message_id"] = "1"
        with Way() as taken:
            reply = app._answer("train", message, context)
        assert "arrays" in reply.content
    return taken


def test_a_training_message_makes_at_most_twenty_one_stays(way):
    stays = [file for file, _ in groupby(way.stays, key=lambda stay: stay[0])]
    assert stays[0] == stays[-1] == "client/app.py"
    assert 10 < len(stays) <= MOST_STAYS, "\n".join(stays)


def test_the_stays_are_those_of_the_table(way):
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    written = re.findall(r"^\| (\d+) \| `([\w/.]+)` \| (.*?) \|", page, re.MULTILINE)
    stays = [(file, {name for _, name in made}) for file, made in groupby(way.stays, key=lambda stay: stay[0])]
    assert [int(number) for number, *_ in written] == list(range(1, len(stays) + 1))
    assert [f"client/{file}" for _, file, _ in written] == [file for file, _ in stays]
    named = [set(re.findall(r"`(\w+)`", functions)) - {"Round"} for *_, functions in written]
    assert not [names - made for names, (_, made) in zip(named, stays, strict=True) if names - made]


def test_a_training_message_enters_no_room_a_third_time(way):
    counts = {room: way.entered.count(room) for room in way.entered if room != "client"}
    assert {"client/door", "client/work", "client/state"} <= counts.keys()
    assert max(counts.values()) <= MOST_ENTRIES, way.entered
