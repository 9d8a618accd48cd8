"""A site that works for one study answers who it is to another, says for whom it works, and lets the rest wait."""

from __future__ import annotations

import json
from collections import deque
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory

from client.node import turns
from client.node.turns import Turns
from client.state.chain import LOG
from feddusss import flower, standing
from feddusss.bundle import release_bundle
from server.simulation.inprocess import identify

LUNGS, HEARTS = 11, 12


class SuperLink:
    """What a SuperNode is handed out, and what it sends back, as Flower's connection has it."""

    def __init__(self):
        self.queue: deque = deque()
        self.objects: dict[str, bytes] = {}
        self.answers: list[tuple[int, str, Message]] = []
        """(run, kind of the message that is answered, answer)"""
        self.kinds: dict[str, str] = {}
        self.away = False
        self.fetched: set[str] = set()
        self.stopped: set[int] = set()

    def sends(self, run_id: int, kind: str) -> None:
        identify(run_id)
        message = Message(RecordDict({"config": ConfigRecord({"number": len(self.kinds)})}), 1, kind)
        message.metadata.__dict__["_message_id"] = message.object_id
        self.kinds[message.object_id] = kind
        self.objects |= {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
        self.queue.append((message, get_object_tree(message)))

    def receive(self):
        if self.away:
            raise ConnectionError("the line is away")
        return self.queue.popleft() if self.queue else None

    def send(self, message, tree, seconds):
        self.answers.append((message.metadata.run_id, self.kinds[message.metadata.reply_to_message_id], message))
        return set(), "session"

    def pull_object(self, run_id, name):
        self.fetched.add(name)
        return self.objects[name]

    def confirm(self, run_id, name):
        if run_id in self.stopped:
            raise flower.RunNotRunningException  # which is no Exception
        assert name in self.fetched, "what is confirmed is deleted, though it may be on its way still"

    def given(self, state, store):
        def get_run(run_id):
            run = Run.create_empty(run_id)
            run.series_id, run.fab_hash = run_id, release_bundle()[1]
            return run

        return {
            "state": state,
            "object_store": store,
            "node_config": {},
            "receive": self.receive,
            "get_run": get_run,
            "get_fab": lambda sha256, run_id: Fab(sha256, release_bundle()[0], {}),
            "pull_object": self.pull_object,
            "confirm_message_received": self.confirm,
            "trusted_entities": None,
        }


class Site:
    """A SuperNode's loop with Flower's own state, a clock that its sleeping moves, and workers that a test plays."""

    def __init__(self, folder, monkeypatch):
        self.home = folder / "flwr"
        self.home.mkdir()
        self.link = SuperLink()
        objects = ObjectStoreFactory()
        self.store, self.state = objects.store(), NodeStateFactory(objects).state()
        self.state.set_node_id(1)
        self.beside: list[SimpleNamespace] = []
        self.turns = Turns(self.home, self._answer_a_query)
        self.clock, self.then = 0.0, {}
        """What happens at a second."""
        monkeypatch.setattr(turns.time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(turns.time, "sleep", self._sleep)
        monkeypatch.setattr(start_client_internal, "time", SimpleNamespace(sleep=lambda s: pytest.fail("waits")))

    def round(self) -> int | None:
        """Take a message and see it answered, as Flower's loop does."""
        run_id = self.turns.take(**self.link.given(self.state, self.store))
        if run_id is not None:
            self.turns.answer(state=self.state, object_store=self.store, send=self.link.send, push_object=print)
        return run_id

    def begins(self, study: str | None) -> int:
        """A worker takes the oldest task; the task."""
        task = self.state.get_tasks(statuses=["pending"], order_by="pending_at")[0]
        self.state.claim_task(task.task_id)
        self.state.activate_task(task.task_id)
        if study is not None:
            turns.at_work(self.home, task.run_id, json.dumps({"study": study}))
        return task.task_id

    def ends(self, task_id: int, *, answer: bool = True) -> None:
        """It has an answer, or ended without one."""
        [task] = self.state.get_tasks(task_ids=[task_id])
        [message] = self.state.get_messages_legacy(run_ids=[task.run_id], is_reply=False)
        if answer:
            identify(task.run_id)
            self.state.record_message_processing_start(message.metadata.message_id)
            self.state.record_message_processing_end(message.metadata.message_id)
            start_client_internal._insert_message(Message(RecordDict(), reply_to=message), self.state, self.store)
        assert self.state.finish_task(task_id, "completed" if answer else "failed", "")

    def _answer_a_query(self):
        process = SimpleNamespace(code=None, ended=0)
        process.poll = lambda: process.code
        process.terminate = lambda: setattr(process, "ended", process.ended + 1)
        process.wait = lambda seconds=None: 0
        self.beside.append(process)
        return process

    def _sleep(self, seconds):
        self.clock += seconds
        for at in sorted(self.then):
            if at <= self.clock:
                self.then.pop(at)()
                return
        assert self.clock < 1000, "nobody ends it"


@pytest.fixture
def site(tmp_path, monkeypatch):
    return Site(tmp_path, monkeypatch)


def at(site, **doings):
    site.then |= {float(name.removeprefix("s")): do for name, do in doings.items()}


def answered(site):
    return [(run, kind) for run, kind, _ in site.link.answers]


def test_who_is_there_is_answered_while_another_study_trains(site):
    tasks = {}
    site.link.sends(LUNGS, "train")
    at(
        site,
        s1=lambda: tasks.update(lungs=site.begins("lungs")),
        s5=lambda: site.link.sends(HEARTS, "query"),
        s20=lambda: tasks.update(query=site.begins(None)),
        s21=lambda: site.ends(tasks["query"]),
        s60=lambda: site.ends(tasks["lungs"]),
    )
    assert site.round() == LUNGS
    assert answered(site) == [(HEARTS, "query"), (LUNGS, "train")]
    assert len(site.beside) == 1 and site.beside[0].ended == 1, "it must not live on to take what is the worker's"


def test_what_is_work_waits_its_turn_the_oldest_first(site):
    tasks = []
    site.link.sends(LUNGS, "train")
    at(
        site,
        s1=lambda: tasks.append(site.begins("lungs")),
        s5=lambda: [site.link.sends(HEARTS, kind) for kind in (standing.STEP, "train", "evaluate")],
        s100=lambda: site.ends(tasks.pop()),
    )
    site.round()
    assert answered(site) == [(LUNGS, "train")] and not site.beside and not site.link.queue
    for number, kind in enumerate((standing.STEP, "train", "evaluate"), 1):
        at(site, **{f"s{100 * number + 1}": lambda: tasks.append(site.begins("hearts"))})
        at(site, **{f"s{100 * number + 50}": lambda: site.ends(tasks.pop())})
        assert site.round() == HEARTS
        assert answered(site)[number:] == [(HEARTS, kind)]


def test_a_study_that_waits_is_told_for_which_one_the_site_works_and_its_own_is_told_nothing(site):
    tasks = []
    for run in (LUNGS, HEARTS):  # as ever, they have asked who is there first
        site.link.sends(run, "query")
        at(site, **{f"s{site.clock + 1}": lambda: tasks.append(site.begins(None))})
        at(site, **{f"s{site.clock + 2}": lambda: site.ends(tasks.pop())})
        site.round()
    site.link.sends(LUNGS, "train")
    began = site.clock
    at(
        site,
        **{
            f"s{began + 1}": lambda: tasks.append(site.begins("lungs")),
            f"s{began + 5}": lambda: site.link.sends(HEARTS, "query"),  # it is nothing to be busy with
            f"s{began + 6}": lambda: [site.link.sends(run, standing.KIND) for run in (HEARTS, LUNGS)],
            f"s{began + 30}": lambda: tasks.append(site.begins(None)),
            f"s{began + 31}": lambda: site.ends(tasks.pop()),
            f"s{began + 60}": lambda: site.ends(tasks.pop()),
        },
    )
    site.round()
    said = {run: reply for run, kind, reply in site.link.answers if kind == standing.KIND}
    assert {run: read(site, reply) for run, reply in said.items()} == {HEARTS: "lungs", LUNGS: ""}
    site.link.sends(HEARTS, standing.KIND)
    site.round()
    assert read(site, site.link.answers[-1][2]) == "", "at nothing, it is busy with nothing"
    lines = [json.loads(line) for line in (site.home.parent / LOG).read_text().splitlines()]
    assert [line["fields"]["busy"] for line in lines if line["event"] == "answer"] == ["lungs", "", ""]


def read(site, reply):
    return standing.read(reply.content)


def test_what_cannot_be_recorded_is_not_said(site, monkeypatch):
    def unrecorded(*_, **__):
        raise turns.audit.Unrecorded("the disk is full", "free some")

    monkeypatch.setattr(turns.audit, "record", unrecorded)
    site.state.store_run(Run.create_empty(HEARTS))
    site.link.sends(HEARTS, standing.KIND)
    assert site.round() is None and answered(site) == []


def test_a_run_whose_bundle_was_not_judged_is_told_nothing(site):
    site.link.sends(HEARTS, standing.KIND)
    assert site.round() is None and answered(site) == []


def test_a_study_that_is_stopped_while_it_asks_costs_the_other_one_nothing(site):
    tasks = []
    site.state.store_run(Run.create_empty(HEARTS))
    site.link.stopped.add(HEARTS)
    site.link.sends(LUNGS, "train")
    at(
        site,
        s1=lambda: tasks.append(site.begins("lungs")),
        s5=lambda: site.link.sends(HEARTS, standing.KIND),
        s60=lambda: site.ends(tasks.pop()),
    )
    site.round()
    assert answered(site) == [(LUNGS, "train")]
    site.link.sends(HEARTS, standing.KIND)
    assert site.round() is None


def test_a_line_that_is_away_while_a_study_trains_costs_it_nothing(site):
    tasks = []
    site.link.sends(LUNGS, "train")
    at(
        site,
        s1=lambda: tasks.append(site.begins("lungs")),
        s3=lambda: setattr(site.link, "away", True),
        s100=lambda: site.ends(tasks.pop()),
    )
    site.round()
    assert answered(site) == [(LUNGS, "train")]


def test_a_worker_that_ended_with_a_message_is_answered_for_and_so_is_a_process_for_a_query(site):
    tasks = {}
    site.link.sends(LUNGS, "train")
    at(
        site,
        s1=lambda: tasks.update(lungs=site.begins("lungs")),
        s5=lambda: site.link.sends(HEARTS, "query"),
        s20=lambda: site.begins(None),
        s21=lambda: setattr(site.beside[0], "code", 1),
        s60=lambda: site.ends(tasks["lungs"], answer=False),
    )
    site.round()
    assert answered(site) == [(HEARTS, "query"), (LUNGS, "train")]
    assert all("ended while it had this message" in reply.error.reason for *_, reply in site.link.answers)


@pytest.mark.parametrize("come", [0, 1])
def test_a_worker_that_ends_while_it_hands_its_answer_over_is_answered_for(site, come):
    """Its answer is announced to the SuperNode, and the rest of it will never come."""
    tasks = []
    site.link.sends(LUNGS, "train")

    def hands_over_and_ends():
        [message] = site.state.get_messages_legacy(run_ids=[LUNGS], is_reply=False)
        identify(LUNGS)
        answer = Message(RecordDict({"config": ConfigRecord({"a": 1})}), reply_to=message)
        answer.metadata.__dict__["_message_id"] = answer.object_id
        session = site.state.start_session(LUNGS)
        _, names = site.state.store_message_and_object_tree(answer, get_object_tree(answer), session)
        objects = get_all_nested_objects(answer)
        for name in names[:come]:
            assert site.state.store_object(LUNGS, session, name, objects[name].deflate())
        assert site.state.finish_task(tasks.pop(), "failed", "")

    at(site, s1=lambda: tasks.append(site.begins("lungs")), s60=hands_over_and_ends)
    site.round()
    assert answered(site) == [(LUNGS, "train")]
    assert "ended while it had this message" in site.link.answers[0][2].error.reason
    site.link.sends(HEARTS, "train")
    at(site, s100=lambda: tasks.append(site.begins("hearts")), s200=lambda: site.ends(tasks.pop()))
    site.round()
    assert answered(site)[1:] == [(HEARTS, "train")]


@pytest.mark.parametrize("settings", ["", "{", "[]", json.dumps({"study": "../x"}), json.dumps({"study": 3}), None])
def test_a_study_is_named_only_where_its_name_is_one(site, settings):
    turns.at_work(site.home, LUNGS, settings)
    assert turns.busy_with(site.home, [LUNGS], HEARTS) == standing.UNNAMED
    assert turns.busy_with(site.home, [LUNGS], LUNGS) == ""
    turns.at_work(site.home, LUNGS, json.dumps({"study": "lungs"}))
    assert turns.busy_with(site.home, [LUNGS, HEARTS], HEARTS) == "lungs"
    assert turns.busy_with(site.home, [13], HEARTS) == standing.UNNAMED, "what it worked for before is not told"
