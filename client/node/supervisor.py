"""Keeps one site connected: a guarded SuperNode and a warm worker, started again when they end, ended with this one.

    python -m client                     this process: the lock, the log, the status line
      python -m client.node.supernode         Flower's SuperNode: connection, heartbeat, guard
      python -m client.node.worker            torch, the data, training

Each child leads a process group of its own, so that Ctrl-C reaches this process alone and nothing that a child starts
can outlive it. FLWR_HOME is state_dir/flwr.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from client.node import connection
from client.node.child import GRACE_S, heard
from client.node.console import Console
from client.node.ending import Ending, Situation, why
from client.secure.keys import public_path
from dusss_core.files import private_folder
from sites.config import SiteConfig, SuperLinkConfig

CHECK_S = 5.0
"""Seconds between two looks at whether the site's folder is still there."""
_STEADY_S = 60.0
"""After so long a run, the next wait starts small again."""
_WORKER_ENDED = Ending("worker", "", 1, 60)


class Supervisor:
    """Runs one site until it is told to stop.

    Args:
        site_file: the file that messages are worked on with; absolute.
        check: called every few seconds; what it raises ends the run.
    """

    def __init__(self, site: SiteConfig, site_file: Path, console: Console, check: Callable[[], None] = lambda: None):
        assert site.superlink is not None
        self._superlink: SuperLinkConfig = site.superlink
        self._site_file = site_file
        self._console = console
        self._check = check
        self._home = site.state_dir / "flwr"
        self._events: queue.SimpleQueue[tuple[_Child | None, str | None]] = queue.SimpleQueue()
        self._supernode = _Child("supernode", self._events)
        self._worker = _Child("worker", self._events)
        self._stopping = False
        self._connected = False
        self._told = ""

    def run(self) -> None:
        """Work until SIGTERM or Ctrl-C, then end both children and return."""
        private_folder(self._home)
        with self._stopped_by_signals():
            self._start(self._worker)
            self._start(self._supernode)
            try:
                while not self._stopping:
                    self._wait_for_event()
            finally:
                self._stop()

    # What happens.

    def _wait_for_event(self) -> None:
        due = [child.due for child in (self._supernode, self._worker) if child.due is not None]
        self._check()
        try:
            child, line = self._events.get(timeout=max(0.0, min([CHECK_S, *(at - time.monotonic() for at in due)])))
        except queue.Empty:
            for child in (self._worker, self._supernode):
                if child.due is not None and child.due <= time.monotonic():
                    self._start(child)
            return
        if child is None:
            return
        if line is None:
            self._ended(child)
        else:
            self._heard(child, line)

    def _heard(self, child: _Child, line: str) -> None:
        event = heard(line)
        if event is None:
            self._console.keep(f"{child.name}: {line}")
        elif event[0] == "status":
            if self._connected:
                self._console.show(event[1])
        elif event[0] == "step":
            if self._connected:
                self._console.show_step(*map(int, event[1].split()))
        else:
            self._console.say(event[1])
        if event is not None and event[0] == "connected":
            self._connected, self._told = True, ""
            self._console.show("connected, waiting for work")

    def _ended(self, child: _Child) -> None:
        if child is self._worker:
            ending = _WORKER_ENDED
            self._console.say(
                f"the worker ended ({child.how()}); starting it again. {_last_words(child.lines)}".strip()
            )
        else:
            ending = why(self._situation())
            if ending.name == "revoked":
                connection.forget(self._home)  # else the refusals that follow would read as those after a crash
            if ending.name != self._told:
                self._console.say(ending.text)
            self._told = ending.name
            self._connected = False
        wait = child.wait_before_restart(ending)
        if child is self._supernode:
            self._console.show(f"{ending.text} (next try in {wait:.0f} s)")

    def _situation(self) -> Situation:
        key, last = self._superlink.private_key, connection.last(self._home)
        return Situation(
            lines=self._supernode.lines,
            was_connected=self._connected,
            may_be_online=last is not None and last.may_be_online(connection.name_of_key(key)),
            public_key=str(public_path(key or Path("key"))),
        )

    # Starting and stopping.

    def _start(self, child: _Child) -> None:
        if child is self._supernode:
            self._console.show(f"connecting to {self._superlink.address}")
        child.start([f"client.node.{child.name}", str(self._site_file)], self._environment(child))

    def _environment(self, child: _Child) -> dict[str, str]:
        """The SuperNode goes through HTTPS_PROXY where it is set, as Flower's client (httpx) does by itself."""
        proxy = {name: f"{os.environ.get(name, '')},127.0.0.1" for name in ("NO_PROXY", "no_proxy")}
        return {
            **os.environ,
            **(proxy if child is self._worker else {}),  # the worker speaks with this machine's SuperNode alone
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def _stop(self) -> None:
        self._console.show("stopping")
        children = [child for child in (self._supernode, self._worker) if child.running]
        for child in children:
            child.terminate()
        give_up = time.monotonic() + GRACE_S
        for child in children:
            if not child.wait(give_up - time.monotonic()):
                child.kill()
                child.wait(GRACE_S)
        if self._supernode.how() == "exit code 0":
            # it has said goodbye: whoever refuses this site from now on does not know it
            connection.forget(self._home)
        self._console.say("stopped")

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        def stop(*_: object) -> None:
            self._stopping = True
            self._events.put((None, None))

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Child:
    """A child process; what it writes and that it ended come to `events`."""

    def __init__(self, name: str, events: queue.SimpleQueue):
        self.name = name
        self.due: float | None = None
        """When it is to be started (again)."""
        self.lines: deque[str] = deque(maxlen=60)
        """Its last lines since it was started."""
        self._events = events
        self._process: subprocess.Popen | None = None
        self._over = threading.Event()
        self._started = 0.0
        self._waits: tuple[str, float] | None = None

    def start(self, module: list[str], environment: Mapping[str, str]) -> None:
        self.due, self._over, self._started = None, threading.Event(), time.monotonic()
        self.lines.clear()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *module],
            env=dict(environment),
            stdin=subprocess.PIPE,  # never written to; it closes when this process ends (client.node.child)
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        threading.Thread(target=self._watch, args=(self._process, self._over), daemon=True).start()

    @property
    def running(self) -> bool:
        return self._process is not None and not self._over.is_set()

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, with all of its group, within `seconds`."""
        return self._over.wait(max(0.0, seconds))

    def how(self) -> str:
        code = self._process.returncode if self._process is not None else None
        return "it runs" if code is None else f"exit code {code}" if code >= 0 else f"signal {-code}"

    def wait_before_restart(self, ending: Ending) -> float:
        """Set when it is to be started again; the seconds until then."""
        again = self._waits is not None and self._waits[0] == ending.name
        steady = time.monotonic() - self._started > _STEADY_S
        wait = min(ending.longest_s, 2 * self._waits[1]) if again and not steady else ending.shortest_s
        self._waits = (ending.name, wait)
        self.due = time.monotonic() + wait
        return wait

    def _signal(self, number: int) -> None:
        if self.running:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _watch(self, process: subprocess.Popen, over: threading.Event) -> None:
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        # While the leader is dead but not yet waited for, its number still names the group, and no other.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(timeout=GRACE_S)
        process.stdin.close()
        over.set()
        self._events.put((self, None))

    def _read(self, process: subprocess.Popen) -> None:
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()[:2000]
            if line:
                self.lines.append(line)
                self._events.put((self, line))


def _last_words(lines: deque[str]) -> str:
    return next((line for line in reversed(lines) if not line.startswith("@")), "")[:300]
