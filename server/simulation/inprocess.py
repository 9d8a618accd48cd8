"""A Grid that runs the real ClientApp in this process: no Ray, no SuperLink, no copy of the code.

Sites work one after another, during the push. What crosses the border is what would cross the network: the records of
a message are built anew on the other side, so that neither side can change what the other holds (the bytes inside
are immutable), and an exception in the ClientApp becomes an error reply, as in Flower's runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from client.door.machine import device_is_lost
from client.work.observe import observed
from dusss_core.errors import UserError
from feddusss import flower
from server.runs.events import Reporter

RAISED = 2
"""Flower's error code for an exception in the ClientApp."""


class Failure(NamedTuple):
    """What went wrong at a site, as text: a library's error may not cross to another process."""

    kind: str
    """Name of the error's class."""
    text: str
    mendable: tuple[str, str, str] | None
    """Problem, remedy and code, where a person can mend it."""

    def problem(self) -> str:
        """What a person is told, in one line, without a remedy."""
        return (self.mendable[0] if self.mendable else f"{self.kind}: {self.text}").split("\n")[0]

    @classmethod
    def of(cls, error: Exception) -> Failure:
        mendable = (error.problem, error.remedy, error.code) if isinstance(error, UserError) else None
        return cls(type(error).__name__, str(error), mendable)


class InProcessGrid(Grid):
    """The simulated sites of a study.

    Args:
        site_files: one site each; node ids count from 1 in this order.
        reporter: hears of each site's steps, and of what goes wrong at a site in full.
    """

    works_in_push = True
    """Sites work during the push: who wants to hear of one before the next one starts pushes one by one."""

    def __init__(
        self, client_app: ClientApp, site_files: Sequence[Path], reporter: Reporter | None = None, run_id: int = 1
    ):
        identify(run_id)
        self._app = client_app
        self._run_id = run_id
        self._reporter = reporter or Reporter()
        self._names = {node: file.parent.name for node, file in enumerate(site_files, start=1)}
        self._contexts = {node: site_context(run_id, node, file) for node, file in enumerate(site_files, start=1)}
        self._replies: dict[str, Message] = {}
        self._failed: dict[str, Failure] = {}

    def set_run(self, run: flower.Run) -> None:
        """There is one run only."""

    @property
    def run(self) -> flower.Run:
        return flower.Run.create_empty(self._run_id)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            flower.name_message(message, str(uuid4()))
            ids.append(message.metadata.message_id)
            self._replies[ids[-1]] = self._work(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(message_id) for message_id in list(message_ids) if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def cause(self, site: str) -> tuple[str, tuple[str, str, str] | None] | None:
        """What went wrong at a site with its last message, for `Coordinator`; None: nothing did."""
        failure = self._failed.get(site)
        return None if failure is None else (failure.problem(), failure.mendable)

    def close(self) -> None:
        """Nothing to give back: the sites work in this process."""

    def _work(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        site = self._names[node]
        reply, failures = work_on(
            message, self._app, self._contexts[node], lambda *step: self._reporter.on_site_step(site, *step)
        )
        if device_is_lost():
            # no site of this process can use it any more
            raise UserError(
                f"{site}: the GPU failed: {'; '.join(failure.text for failure in failures)}",
                "look after the GPU (nvidia-smi), then go on with --resume: the checkpoints are intact",
            )
        return self._finished(message, reply, failures)

    def _finished(self, message: Message, reply: Message, failures: Sequence[Failure]) -> Message:
        """Tell what went wrong at the site, and let the answer go on its way."""
        self._failed.pop(self._names[message.metadata.dst_node_id], None)
        for failure in failures:
            self._failed[self._names[message.metadata.dst_node_id]] = failure
            if message.metadata.message_type == "query" and failure.mendable:
                # here the coordinator's user and the site's are one, and can mend it before it starts
                raise UserError(*failure.mendable)
            site = self._names[message.metadata.dst_node_id]
            self._reporter.on_message(f"{site}: {failure.kind}: {failure.text}")
        flower.name_message(reply, str(uuid4()))
        return reply


def identify(run_id: int) -> None:
    """Messages take their sender from here; Flower's own runtimes set it too."""
    identity = flower.TaskIdentity
    identity.task_id, identity.run_id, identity.node_id = 1, run_id, 1


def site_context(run_id: int, node: int, site_file: Path) -> Context:
    """What Flower's runtime tells the ClientApp of a site about itself."""
    node_config = {"site-config": str(Path(site_file).absolute())}
    return Context(run_id=run_id, node_id=node, node_config=node_config, state=RecordDict(), run_config={})


def work_on(
    message: Message, client_app: ClientApp, context: Context, on_step: Callable[[int, int, float], None]
) -> tuple[Message, list[Failure]]:
    """The site's answer to a message, and what went wrong at the site, which is not in the answer."""
    failures: list[Failure] = []
    with observed(on_step, lambda error: failures.append(Failure.of(error))):
        try:
            received = Message(metadata=message.metadata, content=_rebuilt(message.content))
            reply = client_app(received, context)
            if reply.has_content():
                reply.content = _rebuilt(reply.content)
        except Exception as error:
            failures.append(Failure.of(error))
            reply = Message(Error(code=RAISED, reason=f"{type(error)}:<'{error}'>"), reply_to=message)
    return reply, failures


def _rebuilt(content: RecordDict) -> RecordDict:
    """A deep copy, but for the immutable bytes of the arrays."""
    copy = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            copy[name] = ArrayRecord(dict(record))
        elif isinstance(record, MetricRecord):
            copy[name] = MetricRecord({k: list(v) if isinstance(v, list) else v for k, v in record.items()})
        else:
            copy[name] = ConfigRecord({k: list(v) if isinstance(v, list) else v for k, v in record.items()})
    return copy
