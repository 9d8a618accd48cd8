"""A site that is busy with another study is waited for, by name, and what its own time is counted from stays right."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from feddusss import standing
from server.rounds import exchange as module
from server.rounds.exchange import exchange
from server.rounds.replies import LOST, read_reply
from server.rounds.roster import Roster
from server.runs.eventlog import Progress
from server.simulation.inprocess import identify

ALDER, BIRCH = 3, 5


class Hospitals:
    """Nodes behind a clock of their own: when each answers, and what it says that it is at.

    Args:
        answers: the second in which a node answers what it was sent; None: never.
        busy: (node, second) -> the other study; None: it says nothing.
    """

    asks_standing = True

    def __init__(self, clock, answers, busy):
        identify(1)
        self.clock, self.answers, self.busy = clock, answers, busy
        self.asked: list[tuple[int, float]] = []
        self.forgotten: set[str] = set()
        self._open: dict[str, Message] = {}

    def push_messages(self, messages):
        ids = []
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            if kind == standing.KIND:
                self.asked.append((node, self.clock[0]))
                assert not message.content
            ids.append(f"{kind} {node} {self.clock[0]}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._open[ids[-1]] = message
        return ids

    def pull_messages(self, ids):
        return [reply for name in ids if name in self._open and (reply := self._reply(name)) is not None]

    def forget(self, ids):
        self.forgotten |= set(ids)

    def pause(self, seconds):
        self.clock[0] += seconds

    def _reply(self, name):
        message, node = self._open[name], self._open[name].metadata.dst_node_id
        if message.metadata.message_type == standing.KIND:
            busy = self.busy(node, self.clock[0])
            content = None if busy is None else standing.told(busy)
        else:
            due = self.answers.get(node)
            content = RecordDict() if due is not None and self.clock[0] >= due else None
        if content is None:
            return None
        del self._open[name]
        return Message(content, reply_to=message)


@pytest.fixture
def clock(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    return clock


def ask(clock, answers, busy, timeout=60.0, busy_s=300.0):
    """What came of one exchange: who answered, who did not and why, the times of the questions, and what was told."""
    grid, heard, told = Hospitals(clock, answers, busy), [], []
    messages = {node: Message(RecordDict(), node, "train") for node in (ALDER, BIRCH)}
    silent = exchange(
        grid,
        messages,
        timeout,
        lambda node, message: heard.append(node),
        busy_s=busy_s,
        on_busy=lambda node, study: told.append((node, study)),
    )
    return heard, silent, grid, told


def test_time_that_a_site_spends_on_another_study_is_not_held_against_it(clock):
    def busy(node, now):
        return "lungs" if node == BIRCH and now < 200 else ""

    heard, silent, _, told = ask(clock, {ALDER: 30, BIRCH: 230}, busy)
    assert heard == [ALDER, BIRCH] and silent == {} and clock[0] > 200
    assert told == [(BIRCH, "lungs"), (BIRCH, "")]


def test_a_site_that_is_at_work_for_this_study_has_its_own_time_and_no_more(clock):
    heard, silent, _, told = ask(clock, {ALDER: 30}, lambda node, now: "")
    assert heard == [ALDER] and silent == {BIRCH: ""} and 60 <= clock[0] < 70 and told == []


def test_a_timeout_names_the_study_that_the_site_was_busy_with_and_how_long(clock):
    heard, silent, grid, _ = ask(clock, {ALDER: 30}, lambda node, now: "lungs", busy_s=100)
    assert heard == [ALDER] and 160 <= clock[0] < 175
    assert silent[BIRCH].startswith("it is busy with lungs (for 16")
    reply = read_reply("birch", None, silent=silent[BIRCH])
    assert reply.reason.startswith("no answer in time: it is busy with lungs") and reply.kind == LOST
    assert any(name.startswith("train") for name in grid.forgotten)


def test_a_site_that_says_nothing_is_late_when_its_time_is_over(clock):
    _, silent, grid, _ = ask(clock, {ALDER: 30}, lambda node, now: None)
    assert silent == {BIRCH: ""} and 60 <= clock[0] < 70
    assert [node for node, _ in grid.asked].count(BIRCH) == 1, "it is not asked again while it says nothing"


def test_who_answers_soon_is_never_asked_and_a_long_round_costs_few_questions(clock):
    _, _, grid, _ = ask(clock, {ALDER: 10, BIRCH: 3500}, lambda node, now: "", timeout=3600)
    assert {node for node, _ in grid.asked} == {BIRCH} and 15 <= grid.asked[0][1] < 18
    assert len(grid.asked) < 50


def test_a_question_that_cannot_be_asked_ends_no_round(clock, monkeypatch):
    push = Hospitals.push_messages

    def broken(grid, messages):
        if any(message.metadata.message_type == standing.KIND for message in messages):
            raise RuntimeError("the push session may have expired")
        return push(grid, messages)

    monkeypatch.setattr(Hospitals, "push_messages", broken)
    heard, silent, _, _ = ask(clock, {ALDER: 30, BIRCH: 50}, lambda node, now: "lungs")
    assert heard == [ALDER, BIRCH] and silent == {}


def test_a_grid_that_plays_the_sites_asks_nothing(clock, monkeypatch):
    monkeypatch.setattr(Hospitals, "asks_standing", False)
    _, silent, grid, _ = ask(clock, {ALDER: 10}, lambda node, now: "lungs")
    assert grid.asked == [] and silent == {BIRCH: ""} and clock[0] < 70


@pytest.mark.parametrize("said", ["", "lungs", "a b", "x" * 70, "\x1b[31mred"])
def test_what_a_site_says_it_is_busy_with_is_shown_as_a_name_or_not_at_all(said):
    content = RecordDict({"standing": ConfigRecord({"busy": said})})
    assert standing.read(content) == (said if said in ("", "lungs") else standing.UNNAMED)
    assert standing.read(RecordDict({"standing": ConfigRecord({"busy": 3})})) is None
    assert standing.read(RecordDict()) is None


def test_status_says_which_site_trains_for_which_study():
    progress = Progress()
    progress.on_round_start("segment", 1, 2, ["alder", "birch"])
    progress.on_site_busy("birch", "lungs")
    assert progress.sites == {"alder": "waits", "birch": "waiting: birch trains for lungs"}
    progress.on_site_busy("birch", "")
    assert progress.sites["birch"] == "works"


def test_what_came_of_an_answer_that_nobody_waits_for_is_let_go(clock):
    """A node could else leave a piece of one in the coordinator's memory each time that it is asked again."""
    _, _, grid, _ = ask(clock, {ALDER: 2000, BIRCH: 2000}, lambda node, second: None, timeout=3000)
    questions = {f"{standing.KIND} {node} {second}" for node, second in grid.asked}
    assert len(questions) > 2 and questions <= grid.forgotten


def test_a_node_that_is_asked_anew_who_it_is_leaves_nothing_of_its_first_answer(clock):
    grid = Hospitals(clock, {}, lambda node, second: None)
    grid.get_nodes = lambda: [SimpleNamespace(node_id=ALDER, name="alder")]
    roster = Roster(grid, RecordDict, None, lambda text: None)
    roster.refresh(0)
    assert grid.forgotten == set()
    clock[0] = 130.0
    roster.refresh(0)
    assert grid.forgotten == {f"query {ALDER} 0.0"}
