"""Sites side by side: the same ClientApp and the same messages as in one process, in a few worker processes.

A worker answers one message at a time. It keeps what a site built (data, trainer) for the site's next message, so a
site goes back to its worker when that one is free; any other finds the site's state on disk, bit for bit the same.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from uuid import uuid4

from flwr.app import Error, Message
from flwr.clientapp import ClientApp

from client.door.machine import device_is_lost
from feddusss import flower
from feddusss.timeleft import Seldom
from server.runs.events import Reporter
from server.simulation import forking, parcels
from server.simulation.inprocess import RAISED, Failure, InProcessGrid, identify, site_context, work_on
from server.simulation.turns import Turns

STEPS_EVERY_S = 0.25
"""Between two steps that a worker tells of: to tell of one costs both sides some tens of microseconds."""


class WorkerGrid(InProcessGrid):
    """The simulated sites of a study, at most `workers` of them at work at a time.

    Args:
        threads: of torch in each worker; None: as torch chooses.
    """

    works_in_push = False

    def __init__(
        self,
        client_app: ClientApp,
        site_files: Sequence[Path],
        reporter: Reporter | None = None,
        run_id: int = 1,
        *,
        workers: int,
        threads: int | None = None,
    ):
        super().__init__(client_app, site_files, reporter, run_id)
        files = {node: Path(file).absolute() for node, file in enumerate(site_files, start=1)}
        sender = parcels.Sender()
        self._start = lambda: _Worker(client_app, run_id, files, threads, sender)
        self._forget = sender.forget
        self._workers = [self._start() for _ in range(min(workers, len(files)))]
        # a simulated site's sentences, which it reads first of all, lie in its manifest
        self._waiting = Turns({node: _bytes_of(file.with_name("manifest.csv")) for node, file in files.items()})

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            flower.name_message(message, str(uuid4()))
            ids.append(message.metadata.message_id)
            self._waiting.add(message)
        self._hand_out()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._listen()
        return super().pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        ids, replies = list(self.push_messages(messages)), []
        give_up = None if timeout is None else time.monotonic() + timeout
        while len(replies) < len(ids) and (give_up is None or time.monotonic() < give_up):
            replies += self.pull_messages(ids)
            self.pause(1.0)
        return replies

    def pause(self, seconds: float) -> None:
        """Wait until a worker has something to tell, but no longer than that."""
        if busy := [worker.connection for worker in self._workers if worker.message is not None]:
            wait(busy, timeout=seconds)
        else:
            time.sleep(seconds)

    def close(self) -> None:
        """End the workers; messages that they are at work on are not answered."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._forget()

    def _hand_out(self) -> None:
        while self._waiting and (free := [worker for worker in self._workers if worker.message is None]):
            message = self._waiting.next()
            node = message.metadata.dst_node_id
            chosen = next((w for w in free if node in w.known), min(free, key=lambda w: len(w.known)))
            for worker in self._workers:
                worker.known.discard(node)
            chosen.take(message)

    def _listen(self) -> None:
        while ready := wait([w.connection for w in self._workers if w.message is not None], timeout=0):
            for worker in [w for w in self._workers if w.connection in ready]:
                self._hear(worker)
            self._hand_out()

    def _hear(self, worker: _Worker) -> None:
        message = worker.message
        try:
            what, *content = parcels.receive(worker.connection)
        except (EOFError, OSError):
            code = worker.end()
            self._workers[self._workers.index(worker)] = self._start()
            error = ChildProcessError(f"its worker process ended (exit code {code}), as it does when memory runs out")
            reply = Message(Error(code=RAISED, reason=str(error)), reply_to=message)
            what, content = "answer", [reply, [Failure.of(error)], False]
        if what == "step":
            self._reporter.on_site_step(self._names[message.metadata.dst_node_id], *content)
            return
        worker.message = None
        self._waiting.done(message)
        *content, ends = content
        if ends:
            worker.end()
            self._workers[self._workers.index(worker)] = self._start()
        self._replies[message.metadata.message_id] = self._finished(message, *content)


@dataclass
class _Worker:
    """A process that answers messages, as its owner sees it."""

    app: ClientApp
    run_id: int
    files: dict[int, Path]
    threads: int | None
    sender: parcels.Sender
    message: Message | None = None
    """What it is at work on."""
    known: set[int] = field(default_factory=set)
    """The nodes whose last message it answered."""

    def __post_init__(self):
        context = forking.context()
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.app, self.run_id, self.files, self.threads)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def take(self, message: Message) -> None:
        self.message = message
        self.known.add(message.metadata.dst_node_id)
        with suppress(OSError):  # a dead worker is noticed when it is listened to
            self.sender.send(self.connection, message)

    def end(self) -> int | None:
        """End the process. Returns its exit code."""
        self.connection.close()
        if self.message is not None:
            self._process.terminate()
        self._process.join(10)
        return self._process.exitcode


def _bytes_of(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _serve(connection: Connection, app: ClientApp, run_id: int, files: dict[int, Path], threads: int | None) -> None:
    """The worker: answers messages until its owner closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner, which then ends its workers
    identify(run_id)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    contexts = {node: site_context(run_id, node, file) for node, file in files.items()}
    sender = parcels.Sender()

    def tell(*what: Any) -> None:
        sender.send(connection, what)

    tell_step = Seldom(lambda *step: tell("step", *step), STEPS_EVERY_S, time.monotonic)
    while True:
        try:
            message = parcels.receive(connection)
        except (EOFError, OSError):
            return
        reply, failures = work_on(message, app, contexts[message.metadata.dst_node_id], tell_step)
        tell("answer", reply, failures, device_is_lost())
        sender.forget()
        if device_is_lost():
            return
