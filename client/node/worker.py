"""The warm process that works on messages: python -m client.node.worker SITE_FILE

Flower starts a process per message, which imports torch and reads the data each time. With `--isolation process` the
SuperNode leaves that to others, and this process asks it for work over its local API for as long as the site runs:
torch, data, text features and trainers stay loaded. Nothing of a bundle is unpacked here; the app is the installed one.

The SuperNode says in state_dir/flwr/runtime.json, at each start, how it is reached. With `one` after the file it
answers one message, a query, and ends.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.door.declines import Declines
from client.door.guard import refusal
from client.door.machine import device_is_lost
from client.node import arrivals, turns
from client.node.child import end_with_supervisor, tell
from client.work import observe
from dusss_core.errors import UserError
from dusss_core.files import clear_unfinished, write_text
from dusss_core.memory import give_back
from dusss_core.phases import Phase
from feddusss import flower, wire
from feddusss.timeleft import Seldom
from sites.config import load_site

if TYPE_CHECKING:
    from flwr.app import Context, Message

_SHORTEST_POLL_S, _LONGEST_POLL_S = 0.1, 0.5
_STATUS_EVERY_S = 1.0
_ONE_S = 30.0
"""After which a process for one query ends without one: the worker has taken it."""
_declines = Declines(lambda text: tell("say", text))


def main(argv: Sequence[str]) -> None:
    """Take messages and answer them, for ever."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that half-written files are cleared away
    end_with_supervisor()
    site = load_site(Path(argv[0]))
    home = site.state_dir / "flwr"
    supernode, in_work = _SuperNode(home / "runtime.json"), home / "in_work"
    if argv[1:] == ["one"]:
        _take_one(supernode)
        return
    _give_up(in_work)
    clear_unfinished(site.state_dir)
    _warm_up(site.threads)
    tell("status", "waiting for work")
    since = time.monotonic()
    while True:
        announced = arrivals.seen(home)
        if token := supernode.next_task():
            with suppress(UserError):  # a full disk: then the SuperNode waits for a sign of life, should this one end
                write_text(in_work, f"{supernode.address} {token}")
            _take(supernode.address, token, home)
            with suppress(OSError):
                in_work.unlink(missing_ok=True)
            if device_is_lost():
                sys.exit("this process lost its GPU, and ends for another to take its place")
            tell("status", "waiting for work")
            since = time.monotonic()
        _declines.tell_counts()
        waited = time.monotonic() - since
        if arrivals.wait(home, announced, min(_LONGEST_POLL_S, max(_SHORTEST_POLL_S, waited / 20))):
            since = time.monotonic()  # it comes within moments


def _take_one(supernode: _SuperNode) -> None:
    """Answer one query beside the worker, which has something else in its hands (`client.node.turns`)."""
    _warm_up(1)
    give_up = time.monotonic() + _ONE_S
    while time.monotonic() < give_up:
        if token := supernode.next_task():
            _take(supernode.address, token, None)
            return
        time.sleep(_SHORTEST_POLL_S)


def _warm_up(threads: int | None) -> None:
    import torch

    import client.answer
    import client.app  # noqa: F401

    if threads is not None:
        torch.set_num_threads(threads)


class _SuperNode:
    """This site's SuperNode, wherever it was last started."""

    def __init__(self, runtime: Path):
        self.address = ""
        self._runtime = runtime
        self._read = ""
        self._client: Any = None

    def next_task(self) -> str | None:
        """The token of the next message; None if there is none, or no SuperNode yet."""
        import httpx

        try:
            self._connect(self._runtime.read_text(encoding="utf-8"))
            request = flower.AcquireTaskRequest(supported_task_types=["flwr-clientapp"])
            return self._client.AcquireTask(request).token or None
        except (OSError, ValueError, httpx.HTTPError):
            return None

    def _connect(self, text: str) -> None:

        if text == self._read:
            return
        if self._client is not None:
            self._client.close()
        place = json.loads(text)
        secret = bytes.fromhex(place["secret"])
        signer = flower.SuperExecAuthHttpInterceptor(
            master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        )
        self._client = _client(place["address"], signer)
        self.address, self._read = place["address"], text


def _give_up(in_work: Path) -> None:
    """Say that the message which the worker before this one had when it ended will not be answered.

    The SuperNode would wait a minute for its sign of life, and the coordinator with it.
    """
    import httpx

    with suppress(OSError, ValueError, httpx.HTTPError):  # no such message, or no such SuperNode any more
        address, token = in_work.read_text(encoding="utf-8").split()
        in_work.unlink()
        with closing(_client(address, flower.RuntimeTokenHttpInterceptor(token))) as client:
            client.PushTaskOutput(
                flower.PushTaskOutputRequest(sub_status=flower.SubStatus.FAILED, details="the worker ended")
            )


def _take(address: str, token: str, home: Path | None) -> None:
    """Work on a message.

    Args:
        home: where what is worked on is noted; None: it is no work to speak of, nor to show.
    """
    import httpx

    try:
        _work(address, token, home)
    except (httpx.HTTPError, RuntimeError) as error:
        tell("say", f"an answer could not be handed over ({type(error).__name__}): the SuperNode lost the message")
    finally:
        give_back()


def _work(address: str, token: str, home: Path | None) -> None:
    """One message, from the SuperNode and back.

    Raises:
        httpx.HTTPError, RuntimeError: the SuperNode is gone, and the message with it.
    """
    import httpx

    with closing(_client(address, flower.RuntimeTokenHttpInterceptor(token))) as client:
        heartbeat = flower.HeartbeatSender(lambda: _beat(client))
        heartbeat.start()
        try:
            try:
                message, context, _, bundle = flower.pull_task_input(_Patient(client))
            except (httpx.HTTPError, RuntimeError):
                raise
            except Exception as error:  # objects that are no message together
                tell("say", f"a message cannot be read ({type(error).__name__}), and is not answered")
                failed = flower.PushTaskOutputRequest(sub_status=flower.SubStatus.FAILED, details="not a message")
                client.PushTaskOutput(failed)
                return
            reason = refusal(bundle.content, bundle.hash_str)
            reply = _error(message, reason) if reason else _answer(message, context, home)
            flower.push_message(client, reply, context)
            flower.push_task_output(client, context, flower.SubStatus.COMPLETED, "")
        finally:
            with suppress(RuntimeError):
                heartbeat.stop()


class _Patient:
    """A client that waits for the message: the SuperNode announces the work a moment before it has it."""

    def __init__(self, client: Any):
        self._client = client

    def PullMessages(self, request: Any) -> Any:
        for _ in range(100):
            if (reply := self._client.PullMessages(request)).messages_list:
                break
            time.sleep(_SHORTEST_POLL_S)
        return reply

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def _answer(message: Message, context: Context, home: Path | None = None) -> Message:
    from client.app import app

    with _shown(message, home) as what:
        try:
            reply = app(message, context)
        except Exception as error:
            # Only the kind: its text may name a patient's file. `client.answer` has told the site's own log.
            reply = _error(message, f"{type(error).__name__}; the site's own log says more")
        if reason := _declined(reply):
            _declines.declined(what, reason + _mistake(reason, context))
        return reply


def _mistake(reason: str, context: Context) -> str:
    """What is wrong with the site's own file, where that is the reason: without the file no log has it."""
    from client.answer import UNUSABLE_FILE

    if reason == UNUSABLE_FILE:
        try:
            load_site(Path(str(context.node_config["site-config"])))
        except UserError as error:
            return f": {error}"
    return ""


def _declined(reply: Message) -> str | None:
    """The reason that the coordinator is given; None if the work was done."""
    if reply.has_error():
        return reply.error.reason
    config = wire.config_records(reply.content).get("config")
    return str(config["declined"]) if config is not None and config.get("declined") else None


@contextmanager
def _shown(message: Message, home: Path | None) -> Iterator[str]:
    """Show what is worked on, and yield it. Of the message's settings only those of the expected form are shown."""
    settings = (wire.config_records(message.content).get("config") or {}) if message.has_content() else {}
    phase, number = settings.get("phase"), settings.get("round")
    kind = re.sub(r"[^a-z]", "", str(message.metadata.message_type).partition(".")[0])[:20]
    name = f"{phase} round {number}" if phase in list(Phase) and type(number) is int else ""
    what = {"train": f"training {name}", "evaluate": f"evaluating {name}"}.get(kind, f"answering a {kind}")
    if home is None:
        yield what
        return
    turns.at_work(home, message.metadata.run_id, settings.get("training"))
    tell("status", what)
    seldom = Seldom(lambda done, steps: tell("step", f"{done} {steps}"), _STATUS_EVERY_S, time.monotonic)

    def step(done: int, steps: int, loss: float) -> None:
        if done == 1:
            give_back()  # what validation took: its batches are larger than those that are trained on
        seldom(done, steps)

    with observe.observed(step, None):
        yield what


def _error(message: Message, reason: str) -> Message:
    from flwr.app import Error, Message

    return Message(Error(flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def _beat(client) -> bool:
    """Tell the SuperNode that the message is still worked on. It takes a silent worker for dead after a minute."""
    import httpx

    with suppress(httpx.HTTPError):  # a SuperNode that is gone shows when the answer is handed over
        client.SendTaskHeartbeat(flower.SendTaskHeartbeatRequest())
    return True


def _client(address: str, interceptor: Any):

    versions = flower.RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
    return flower.RuntimeHttpClient.from_server_address(address, True, None, [versions, interceptor])


if __name__ == "__main__":
    main(sys.argv[1:])
