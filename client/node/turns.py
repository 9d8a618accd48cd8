"""Several studies at one site: one message is worked on at a time, and the others wait their turn, the oldest first.

Flower's SuperNode looks for no message while one is worked on. So a study that begins while another one trains would
hear nothing for as long as a round lasts, and take the site for absent. Here it goes on looking, and of what comes

- a query, who is there, is answered at once, by a process beside the worker that lives for this alone;
- a question whether the site is busy is answered here, with the study that it works for (`feddusss.standing`);
- anything else waits until the work is done.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from client.door import audit
from client.node import sending
from dusss_core.errors import UserError
from dusss_core.files import write_text
from feddusss import flower, standing

_SHORTEST_CHECK_S, _LONGEST_CHECK_S = 0.05, 0.5
"""Between two looks, in this process, whether the worker is done: after a twentieth of its work."""
_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 1.0, 10.0
"""Between two looks at the SuperLink meanwhile: after a tenth of the work. Each costs it 15 ms of processor time."""
_MOST_WAITING = 64
"""Messages that wait here; what comes after them waits at the SuperLink."""
_MOST_AT_ONCE = 8
"""Of them that are taken in one look."""
_QUESTION_S = 10.0
"""How long a question whether the site is busy may take to come: it is a few hundred bytes."""
_ENDED_S = 5.0
"""How long the process for queries has to end by itself."""
_WORK = "at_work"


@dataclass
class _Open:
    """A message that has no answer yet."""

    message: Any
    task: Any
    """As Flower's state has it: the work that a worker takes."""

    @property
    def is_query(self) -> bool:
        return self.message.metadata.message_type == "query"


class Turns:
    """Stands in for how Flower's SuperNode takes a message and sends its answer.

    Args:
        home: state_dir/flwr.
        answer_a_query: starts a process that answers one query and ends.
    """

    def __init__(self, home: Path, answer_a_query: Callable[[], subprocess.Popen]):
        self._home = home
        self._answer_a_query = answer_a_query
        self._take = flower.supernode._pull_and_store_message
        self._push = flower.supernode._push_messages
        self._given: dict[str, Any] = {}
        self._waiting: deque[Any] = deque()
        self._tasks: dict[str, int] = {}
        """Of each message that is here, by its name."""
        self._beside: subprocess.Popen | None = None

    def take(self, **given: Any) -> int | None:
        """Flower's `_pull_and_store_message`: the run of a message that was taken in, or None."""
        self._given = given
        return self._one(lambda kind: True, self._waiting.popleft if self._waiting else given["receive"])

    def answer(self, *, state: Any, object_store: Any, send: Callable, push_object: Callable) -> None:
        """Flower's `_push_messages`: send what is answered, until nothing that was taken in is without an answer."""
        send = sending.until_it_arrives(send, push_object, object_store, partial(self._is_abandoned, state))
        began = looked = time.monotonic()
        while True:
            opened = self._open(state)
            done = [one for one in opened if one.task.status.status == flower.Status.FINISHED]
            for one in done:
                self._answer_for_the_dead(one, state, object_store)
            if len(done) == len(opened):
                self._end_beside()
            if _is_anything_to_send(state, {one.message.metadata.message_id for one in opened if one not in done}):
                self._push(state=state, object_store=object_store, send=send, push_object=push_object)
            if len(done) == len(opened):
                return
            self._see_to_queries(opened, state)
            now = time.monotonic()
            if now - looked >= min(_LONGEST_LOOK_S, max(_SHORTEST_LOOK_S, (now - began) / 10)):
                self._look()
                looked = time.monotonic()
            time.sleep(min(_LONGEST_CHECK_S, max(_SHORTEST_CHECK_S, (now - began) / 20)))

    # Taking.

    def _look(self) -> None:
        """See what else has come; it is taken in, or put to those that wait. A line that is away is none of it."""
        try:
            for _ in range(_MOST_AT_ONCE):
                waiting = len(self._waiting)
                run_id = self._one(lambda kind: kind == "query", self._given["receive"])
                if (run_id is None and len(self._waiting) == waiting) or len(self._waiting) >= _MOST_WAITING:
                    return
        # the work that is under way is worth more, and the look after it meets the same again
        except (Exception, flower.RunNotRunningException) as error:
            print(f"while work is under way: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def _one(self, is_due: Callable[[str], bool], receive: Callable) -> int | None:
        """Take in the next message, if its kind is due."""
        given, asked = self._given, []

        def received() -> Any:
            if (found := receive()) is None:
                return None
            kind, run_id = found[0].metadata.message_type, found[0].metadata.run_id
            if kind == standing.KIND:
                if given["state"].get_run(run_id) is not None:  # of which the bundle was judged
                    asked.append(found)
                return None
            if is_due(kind):
                taken.append(found[0].metadata.message_id)
                return found
            self._waiting.append(found)
            return None

        taken: list[str] = []
        run_id = self._take(**{**given, "receive": received})
        if asked:
            return self._say_what_it_is_at(*asked[0])
        state = given["state"]
        if run_id is not None and taken[0] in state.msg_store:
            tasks = [task for task in state.get_tasks() if task.run_id == run_id]
            self._tasks[taken[0]] = max(tasks, key=lambda task: task.pending_at).task_id
        return run_id

    def _say_what_it_is_at(self, question: Any, tree: Any) -> int | None:
        """Answer that; not, where it cannot be recorded."""
        from flwr.app import Message

        run_id, given = question.metadata.run_id, self._given
        work = [one.message.metadata.run_id for one in self._open(given["state"]) if not one.is_query]
        busy = busy_with(self._home, work, run_id)
        names = [node.object_id for node in flower.iterate_object_tree(tree)]
        try:
            # it holds nothing, but may be confirmed, which deletes it there, only when all of it has come there
            pull = given["pull_object"]
            flower.supernode.pull_objects(names, lambda name: pull(run_id, name), max_time=_QUESTION_S)
            given["confirm_message_received"](run_id, question.metadata.message_id)
        except (Exception, flower.RunNotRunningException):
            return None  # the study was stopped, or the line is away
        try:
            audit.record(self._home.parent, "answer", kind=standing.KIND, busy=busy)
        except audit.Unrecorded:
            return None
        state = given["state"]
        state.record_message_processing_start(question.metadata.message_id)
        state.record_message_processing_end(question.metadata.message_id)
        reply = Message(standing.told(busy), reply_to=question)
        flower.supernode._insert_message(reply, state, given["object_store"])
        return run_id

    # Answering.

    def _open(self, state: Any) -> list[_Open]:
        """What was taken in and is not answered, the oldest first."""
        here = {name: entry.message for name, entry in list(state.msg_store.items())}
        self._tasks = {name: task for name, task in self._tasks.items() if name in here}
        tasks = {task.task_id: task for task in state.get_tasks(task_ids=list(self._tasks.values()))}
        return [_Open(here[name], tasks[task]) for name, task in self._tasks.items()]

    def _answer_for_the_dead(self, one: _Open, state: Any, object_store: Any) -> None:
        """Send an error where the worker ended before it had an answer, or had handed over all of it: for either Flower
        would wait for ever."""
        from flwr.app import Error, Message

        name = one.message.metadata.message_id
        if one.task.status.sub_status != flower.SubStatus.FAILED:
            return
        told = [
            key for key, entry in list(state.msg_store.items()) if entry.message.metadata.reply_to_message_id == name
        ]
        if any(_is_whole(answer, object_store) for answer in told):
            return
        for part in told:
            state.delete_messages(message_ids=[part])
            object_store.delete(part)
        state.record_message_processing_start(name)
        state.record_message_processing_end(name)
        reason = "the site's worker ended while it had this message"
        reply = Message(Error(flower.ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=one.message)
        flower.supernode._insert_message(reply, state, object_store)

    def _is_abandoned(self, state: Any, name: str) -> bool:
        """Whether the worker that had a message has ended without having answered it."""
        tasks = state.get_tasks(task_ids=[self._tasks[name]]) if name in self._tasks else ()
        return any(task.status.sub_status == flower.SubStatus.FAILED for task in tasks)

    # The process beside the worker.

    def _see_to_queries(self, opened: list[_Open], state: Any) -> None:
        """Have queries answered while the worker has something else in its hands."""
        queries = [one for one in opened if one.is_query and one.task.status.status != flower.Status.FINISHED]
        if not any(not one.is_query and one.task.status.status != flower.Status.FINISHED for one in opened):
            return  # the worker is free for them
        if self._beside is not None and self._beside.poll() is not None:
            self._beside = None
            for one in queries:
                if one.task.status.status != flower.Status.PENDING:  # the process ended with it in its hands
                    state.finish_task(one.task.task_id, flower.SubStatus.FAILED, "the process for queries ended")
        if self._beside is None and any(one.task.status.status == flower.Status.PENDING for one in queries):
            self._beside = self._answer_a_query()

    def _end_beside(self) -> None:
        """End the process for queries: it must not take what is the worker's."""
        if self._beside is None:
            return
        self._beside.terminate()
        try:
            self._beside.wait(_ENDED_S)
        except subprocess.TimeoutExpired:
            self._beside.kill()
            self._beside.wait()
        self._beside = None


def process_for_queries(site_file: Path) -> subprocess.Popen:
    """Start a process that answers one query of the site and ends."""
    local = {name: f"{os.environ.get(name, '')},127.0.0.1" for name in ("NO_PROXY", "no_proxy")}
    command = [sys.executable, "-m", "client.node.worker", str(site_file), "one"]
    return subprocess.Popen(command, env={**os.environ, **local})


def at_work(home: Path, run_id: int, training: object) -> None:
    """Note for which study a worker works.

    Args:
        training: the settings that came with the message, which nobody has judged yet.
    """
    study = None
    with suppress(ValueError, RecursionError, TypeError):
        settings = json.loads(training) if isinstance(training, str) else None
        study = settings.get("study") if isinstance(settings, dict) else None
    with suppress(UserError, OSError):  # a full disk: then it is another study without a name
        write_text(home / _WORK, f"{run_id} {standing.shown(study)}")


def busy_with(home: Path, runs: list[int], asking: int) -> str:
    """The study of the run that the worker is at, if that is not the one that asks.

    Args:
        runs: of messages that are worked on.
        asking: the run that wants to know.
    """
    others = [run for run in runs if run != asking]
    if not others:
        return ""
    with suppress(OSError, ValueError):
        run, _, study = (home / _WORK).read_text(encoding="utf-8").partition(" ")
        if int(run) in others:
            return standing.shown(study)
    return standing.UNNAMED


def _is_whole(answer: str, object_store: Any) -> bool:
    """Whether all objects of an answer are here."""
    tree = object_store.get_object_tree(answer)
    return all(object_store.get(node.object_id) for node in flower.iterate_object_tree(tree))


def _is_anything_to_send(state: Any, in_work: set[str]) -> bool:
    """Whether there is an answer that was not sent yet, to a message that nobody works on any more."""
    answered = [
        entry.message.metadata.reply_to_message_id for entry in list(state.msg_store.values()) if not entry.is_retrieved
    ]
    return any(name and name not in in_work for name in answered)
