"""events.jsonl: what a run tells while it works, so that others can look on from another process.

One JSON line per event: {"at": seconds since 1970, "event": "on_round_end", "args": [...]}, the calls of
`server.runs.events.Reporter`. A submission begins with "begin", and ends with "end" unless its process was killed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dusss_core.commandline import of_bad_input
from dusss_core.errors import UserError, told
from feddusss import cli
from feddusss.timeleft import Rounds
from server.runs.events import Reporter
from server.runs.steps import StepsFile

FILE = "events.jsonl"
SIMULATION = 0
"""In place of the number that Flower gives a run, for a simulation in a process of its own command."""
_EVENTS = [name for name in vars(Reporter) if name.startswith("on_") and name != "on_site_step"]


class EventLog(Reporter):
    """Writes every event to `folder`/events.jsonl. A disk that is full does not stop the study.

    Args:
        also: a reporter that hears the same.
    """

    def __init__(self, folder: Path, also: Reporter | None = None):
        self._path = Path(folder) / FILE
        self._steps = StepsFile(folder)
        self._also = also or Reporter()

    def begin(self, run_id: int) -> None:
        """The ServerApp of Flower's run `run_id` has begun, or a simulation (SIMULATION)."""
        # what a crash cut off would swallow the first line
        self._append("\n")
        self._steps.clear()
        self.write("begin", run_id)

    def end(self, code: int, text: str = "") -> None:
        """It ends with this exit code; `text`: what to tell."""
        self._steps.clear()
        self.write("end", code, text)

    @contextmanager
    def submission(self, run_id: int) -> Iterator[None]:
        """`begin`, then what the block does, then `end`: also where it raises, which is handed on."""
        self.begin(run_id)
        try:
            yield
        except Exception as error:
            mended = error if isinstance(error, UserError) else of_bad_input(error)
            self.end(cli.FAILED if mended is None else cli.USER_MUST_MEND, told(mended or error))
            raise
        except KeyboardInterrupt:
            self.end(cli.INTERRUPTED, "interrupted")
            raise
        self.end(cli.OK)

    def write(self, event: str, *args: Any) -> None:
        """Append an event."""
        if event == "on_round_start":
            self._steps.begin_round(*args[:2])
        elif event == "on_round_end":
            self._steps.clear()
        line = {"at": time.time(), "event": event, "args": args}
        self._append(json.dumps(line) + "\n")
        replay(line, self._also)

    def on_site_step(self, site: str, step: int, steps: int, loss: float) -> None:
        self._steps.made(site, step, steps)  # the latest alone: they are many
        self._also.on_site_step(site, step, steps, loss)

    def close(self) -> None:
        self._also.close()

    def _append(self, text: str) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            pass


def _writer(name: str):
    def event(self: EventLog, *args: Any) -> None:
        self.write(name, *args)

    return event


for _name in _EVENTS:
    setattr(EventLog, _name, _writer(_name))


class Tail:
    """Reads events.jsonl as it grows, from its beginning."""

    def __init__(self, folder: Path):
        self._path = Path(folder) / FILE
        self._offset = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """The events that were added since the last call."""
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset = 0  # the run was begun afresh
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return  # is being written
                    self._offset += len(line)
                    if (event := _event(line)) is not None:
                        yield event
        except FileNotFoundError:
            return


def replay(event: Mapping[str, Any], reporter: Reporter) -> None:
    """Tell a reporter of an event."""
    if event["event"] in _EVENTS:
        at = event.get("at")
        reporter.happened = float(at) if isinstance(at, int | float) else None
        getattr(reporter, event["event"])(*event["args"])
        reporter.happened = None


_MOST_SAID = 100


@dataclass
class Progress(Reporter):
    """Where a run is, gathered from its events."""

    study: str = ""
    phase: str = ""
    round: int = 0
    rounds: int = 0
    doing: str = ""
    sites: dict[str, str] = field(default_factory=dict)
    """What each site of the current or last round does: waits, works, done, the other study it works for, or why it was
    left out."""
    outside: dict[str, str] = field(default_factory=dict)
    """Nodes that are connected and take no part, and why."""
    figures: dict[str, float] = field(default_factory=dict)
    """Of the last finished round."""
    last_message: str = ""
    said: list[str] = field(default_factory=list)
    """While sites are waited for: each message so far, the newest last, such as where the study waits for approval."""
    method: str = "federated"
    """Or the method of --compare that is at work."""
    times: Rounds = field(default_factory=Rounds)
    asked_at: float | None = None
    """When the sites of this round were asked."""
    took: dict[str, float] = field(default_factory=dict)
    """Seconds from the question to the answer, of each site's last answer in this phase."""
    at: float | None = None
    """When it last told anything, in seconds since 1970."""
    run_id: int = 0
    _asked: dict[str, float] = field(default_factory=dict)
    """Site -> when it was asked by itself."""
    code: int | None = None
    """Exit code of the last submission; None while it works, or if it was killed."""
    text: str = ""

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in an event of the log."""
        if event["event"] == "begin":
            self.__init__(run_id=event["args"][0], doing="waits for sites")
        elif event["event"] == "end":
            self.code, self.text = event["args"]
        else:
            replay(event, self)
        self.at = event.get("at", self.at)

    def seconds_left(self, now: float) -> float | None:
        """In this phase; None where nothing tells, or no round goes on. `now`: seconds since 1970."""
        return self.times.left(now) if self.doing == "trains" and self.code is None else None

    def waits_for(self, site: str) -> bool:
        """Whether an answer of `site` is waited for."""
        doing = self.sites.get(site, "")
        return bool(doing) and doing != "done" and not doing.startswith("left out")

    def waited_since(self, site: str) -> float | None:
        """When `site` was asked what it has not answered, in seconds since 1970; None: nothing is waited for."""
        return self._asked.get(site, self.asked_at) if self.waits_for(site) else None

    def on_study(self, study: str, sites: list[str], phases: Mapping[str, int], method: str = "federated") -> None:
        self.study, self.sites, self.method = study, dict.fromkeys(sites, ""), method
        self.said = []

    def on_phase(self, phase: str, rounds: int, start_round: int) -> None:
        self.phase, self.rounds, self.round, self.figures = phase, rounds, start_round - 1, {}
        self.times.begin_phase(rounds, start_round - 1)
        self.took, self.asked_at, self._asked = {}, None, {}

    def on_round_start(self, phase: str, round: int, rounds: int, sites: list[str]) -> None:
        self.phase, self.round, self.rounds, self.doing = phase, round, rounds, "trains"
        self.sites = dict.fromkeys(sites, "waits")
        self.times.begin_round(round, rounds, self._moment())
        self.asked_at, self._asked = self._moment(), {}

    def on_site_start(self, site: str) -> None:
        if self.doing != "trains":  # it measures a model between rounds
            self._asked[site] = self._moment()
        self.sites[site] = "works"

    def on_site_busy(self, site: str, study: str) -> None:
        self.sites[site] = f"waiting: {site} trains for {study}" if study else "works"

    def on_site_outside(self, node: str, reason: str) -> None:
        self.outside.pop(node, None)
        if reason:
            self.outside[node] = reason

    def on_site_done(self, site: str, metrics: Mapping[str, float]) -> None:
        if self.doing == "trains" and self.asked_at is not None:
            self.took[site] = max(0.0, self._moment() - self.asked_at)
        self.sites[site] = "done"

    def on_site_refused(self, site: str, reason: str) -> None:
        self.sites[site] = f"left out: {reason}"

    def on_round_end(self, phase: str, round: int, metrics: Mapping[str, float], best_round: int | None) -> None:
        self.figures, self.doing = dict(metrics), "round saved"
        self.times.end_round(self._moment())

    def on_phase_end(self, phase: str, final_round: int, reason: str) -> None:
        self.doing = f"{phase} ended: {reason}"

    def on_evaluated(self, sites: Mapping[str, Mapping[str, float]], overall: Mapping[str, float]) -> None:
        self.figures, self.doing = dict(overall), "evaluated"

    def _moment(self) -> float:
        return time.time() if self.happened is None else self.happened

    def on_message(self, text: str) -> None:
        self.last_message = text
        if not self.study:
            self.said = [*self.said, text][-_MOST_SAID:]


def progress_of(folder: Path, run_id: int | None = None) -> Progress:
    """Where the run in `folder` is; an empty `Progress` if it has told nothing yet.

    Args:
        run_id: one of the folder's submissions, by Flower's number; None: the last one.
    """
    progress, wanted = Progress(), run_id is None
    for event in Tail(folder).read():
        if event["event"] == "begin":
            wanted = run_id is None or event["args"] == [run_id]
        if wanted:
            progress.take(event)
    return progress


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None  # cut off by a crash, and the next line follows on it
    usable = isinstance(event, dict) and isinstance(event.get("event"), str) and isinstance(event.get("args"), list)
    return event if usable else None
