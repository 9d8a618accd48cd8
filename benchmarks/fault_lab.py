"""What the faults of `benchmarks/faults.py` need: the federation, a cable that can be cut, sites that misbehave."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.runs.lines import ALL_SITES
from server.study.config import StudyConfig
from tests.deployment import PATHS, Client, Process, processes_with, wait_until
from tests.server.conftest import finals
from tests.server.deployed import Federation, events, federation, metrics, wait_for_event

SITES = ("alder", "birch", "cedar")
ROUNDS = 6
_CONNECTED = "connected to the coordinator"
_PATIENCE_S = 600.0
"""For something that takes seconds on an idle machine."""


class NotSurvived(Exception):
    """A study did not do what it must after a fault."""


@dataclass
class Round:
    """What a run told of one round."""

    number: int
    done: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    ended: float | None = None
    """Seconds since 1970."""


class Lab:
    """The federation of three hospitals; `out` of every run is a folder in `folder`."""

    def __init__(self, there: Federation, folder: Path):
        self.there = there
        self.folder = folder
        self.link = there.link
        self.victim: Client = there.clients["cedar"]
        self._undisturbed: dict[str, str] | None = None

    def heal(self) -> None:
        """All sites are there, as at the beginning, and no study of an earlier fault goes on."""
        with self.link.control() as control:
            for run in control.runs():
                if not run.finished:
                    control.stop(run.id)
        for client in self.there.clients.values():
            client.write_site_file()
        self.there.start_clients()

    def end_victim(self) -> None:
        """The victim is gone, however it was; `heal` starts it as it was at the beginning."""
        self.kill_client(self.victim)

    @contextmanager
    def study(self, name: str, *settings: str, code: int = 0, resume: bool = False) -> Iterator[Path]:
        """Run the study while the block runs, and to its end; gives the folder of the run.

        Raises:
            NotSurvived: it ended with another exit code.
        """
        out = self.folder / "runs" / name
        arguments = [*(["--resume"] if resume else []), *(f"--set={setting}" for setting in settings)]
        process = self.there.run(out, *arguments)
        try:
            yield out
            _check_code(process, code)
        finally:
            process.end()

    def interrupted_study(self, name: str, *settings: str) -> tuple[Path, Process]:
        """Start the study; the caller ends the process."""
        out = self.folder / "runs" / name
        return out, self.there.run(out, *(f"--set={setting}" for setting in settings))

    def check_equal(self, out: Path) -> None:
        """Compare a run in which no site missed a round with the run that nobody disturbed.

        Raises:
            NotSurvived: a site was left out of a round, or the final model is not that of the undisturbed run.
        """
        check_means(out, all_sites=True)
        if self._undisturbed is None:
            self.heal()  # the fault may have left its victim stopped
            with self.study("undisturbed") as whole:
                pass
            check_means(whole, all_sites=True)
            self._undisturbed = finals(whole)
        if finals(out) != self._undisturbed:
            raise NotSurvived("the final model is not that of the undisturbed run")

    def check_trained_once(self, out: Path) -> None:
        """Raises NotSurvived if an answer that a round took is not the only one that its site made for this round."""
        run = json.loads((out / "run.json").read_text(encoding="utf-8"))["run_key"]
        for name, client in self.there.clients.items():
            entries = [json.loads(line) for line in (client.folder / "state" / "audit.jsonl").open(encoding="utf-8")]
            asked = Counter(
                entry["fields"]["round"]
                for entry in entries
                if entry["event"] == "message" and entry["fields"].get("run_key") == run
                if entry["fields"]["kind"] == "train"
            )
            for round in rounds(out):
                if name in round.done and asked[round.number] != 1:
                    raise NotSurvived(f"{name} trained round {round.number} {asked[round.number]} times")

    def train_site(self, out: Path, round: int, site: str = "cedar") -> None:
        """Wait until a site works on its message of that round."""
        started: list[Any] = []

        def begun() -> bool:
            seen, started[:] = 0, []
            for event in events(out):
                seen = event["args"][1] if event["event"] == "on_round_start" else seen
                if event["event"] == "on_site_start" and event["args"] == [site]:
                    started.append(seen)
            return round in started

        wait_until(begun, _PATIENCE_S, f"{site} to work on round {round}")

    def end_of_round(self, out: Path, round: int) -> None:
        """Wait until a round is saved."""
        wait_for_event(out, "on_round_end", lambda arguments: arguments[1] >= round, _PATIENCE_S)

    def kill_client(self, client: Client) -> None:
        """kill -9 of all its processes. The worker is held first, so that it has not answered."""
        children = client.children()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in sorted(children.values(), key=lambda pid: pid == children.get("client")):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        client.process.wait()

    @contextmanager
    def rounds_held(self) -> Iterator[None]:
        """The open round, or the next one, does not end meanwhile: on a fast machine the study would be over."""
        with self.worker_held(self.there.clients["alder"]):
            yield

    def start_victim(self) -> None:
        """Start the victim's client, and hold the round until it is connected."""
        with self.rounds_held():
            before = self.victim.output.count(_CONNECTED)
            self.victim.start()
            wait_until(lambda: self.victim.output.count(_CONNECTED) > before, _PATIENCE_S, "cedar to be connected")
            self.there.wait_online({"cedar"}, _PATIENCE_S)

    @contextmanager
    def worker_held(self, client: Client) -> Iterator[None]:
        """The site's worker stands still meanwhile."""
        pid = client.children()["client.node.worker"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def kill_serverapp(self) -> None:
        """kill -9 of the process that runs the study."""
        for name, pid in processes_with(self.link.address).items():
            if "serverapp" in name:
                os.kill(pid, signal.SIGKILL)


@contextmanager
def open_lab(folder: Path, study: StudyConfig) -> Iterator[Lab]:
    """The federation, with all three hospitals connected."""
    with federation(folder, study) as there:
        there.start_clients()
        yield Lab(there, folder)


def rounds(out: Path) -> list[Round]:
    """The rounds of a run, in the order in which they were done; one that was done twice is there twice."""
    found: list[Round] = []
    for event in events(out):
        name, arguments = event["event"], event["args"]
        if name == "on_round_start":
            if not found or found[-1].ended is not None or found[-1].number != arguments[1]:
                found.append(Round(arguments[1]))
        elif not found or found[-1].ended is not None:
            continue
        elif name == "on_site_done":
            found[-1].done.add(arguments[0])
        elif name == "on_site_refused":
            found[-1].done.discard(arguments[0])
            found[-1].refused[arguments[0]] = arguments[1]
        elif name == "on_round_end":
            found[-1].ended = event["at"]
    return found


def recovery(out: Path, since: float) -> float | None:
    """Seconds from `since` until a round with all sites was saved; None if there was none."""
    whole = [round.ended for round in rounds(out) if round.ended and round.ended > since and round.done >= set(SITES)]
    return min(whole) - since if whole else None


def lost(out: Path, site: str = "cedar") -> dict[int, str]:
    """Rounds that were done without a site, and why."""
    return {round.number: round.refused[site] for round in rounds(out) if site in round.refused and round.ended}


def check_means(out: Path, *, all_sites: bool = False) -> None:
    """Check that the files of a run agree on whose answers each round's mean holds, each site's once.

    Args:
        all_sites: no site may be missing.

    Raises:
        NotSurvived: a round, and what is wrong with it.
    """
    lines: dict[int, list[dict[str, Any]]] = {}
    for line in metrics(out):
        if line["site"] != ALL_SITES and line["round"] <= ROUNDS:  # after the last one its model is validated
            lines.setdefault(line["round"], []).append(line)
    told = {round.number: round.done for round in rounds(out) if round.ended}
    if sorted(lines) != list(range(1, ROUNDS + 1)):
        raise NotSurvived(f"metrics.jsonl holds rounds {sorted(lines)}")
    for number, those in lines.items():
        names, accepted = [line["site"] for line in those], {line["site"] for line in those if line["accepted"]}
        if len(names) != len(set(names)):
            raise NotSurvived(f"a site counts twice in round {number}: {names}")
        if accepted != told[number]:
            raise NotSurvived(f"round {number} took {sorted(told[number])}, metrics.jsonl has {sorted(accepted)}")
        if all_sites and accepted != set(SITES):
            raise NotSurvived(f"round {number} of {out.name} was done with {', '.join(sorted(accepted))} alone")


class Cable:
    """A TCP line to a port of loopback that can be cut: open connections end, new ones are not answered."""

    def __init__(self, port: int):
        self._port = port
        self._cut = False
        self._left: int | None = None
        self.cut_at = 0.0
        self._pairs: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Nothing passes any more."""
        self._cut = True
        self.cut_at = time.monotonic()
        for end in list(self._pairs):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut_after(self, size: int) -> None:
        """Cut it when so many more bytes have gone out: the last of them arrive, and what is said to them does not."""
        self._left = size

    @property
    def is_cut(self) -> bool:
        return self._cut

    def mend(self) -> None:
        """New connections pass again."""
        self._cut = False

    def close(self) -> None:
        """Nothing passes, and nobody listens."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        if self._cut:
            near.close()
            return
        try:
            far = socket.create_connection(("127.0.0.1", self._port), 5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        self._pairs |= {near, far}
        if self._cut:  # meanwhile: `cut` has not seen these two
            self._end({near, far})
            return
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._pass_on, args=(source, sink, source is near), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, out: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
                if out and self._left is not None:
                    self._left -= len(data)
                    if self._left <= 0:
                        self._left = None
                        self.cut()
        self._end({source, sink})

    def _end(self, pair: set[socket.socket]) -> None:
        for end in pair:
            with suppress(OSError):
                end.close()
        self._pairs -= pair


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """`folder` on a disk of its own; gives a file that fills it when `fill` writes it. Needs root.

    Raises:
        PermissionError: not root, or the system does not allow it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise PermissionError("needs a disk of its own, which only root can mount")
    try:
        yield folder / "filler"
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing new can be opened for writing in `folder`, which is a disk of its own; what is open stays so."""
    for options in (["--bind", str(folder)], ["-o", "remount,bind,ro"]):
        subprocess.run(["mount", *options, str(folder)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def fill(filler: Path) -> None:
    """Fill the disk of `filler` to the last byte."""
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


def misbehaving(folder: Path, code: str) -> dict[str, str]:
    """The environment of a client in whose processes `code` runs before all else: a faulty or hostile release."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{PATHS}"}


def poisoned(damage: str) -> str:
    """Code that damages the answer of round 2: `damage` changes `tensors`, a dict of torch tensors."""
    return f"""
import sys
if "client.node.worker" in sys.orig_argv:
    import torch
    from client.work.training import Round
    honest = Round.train
    def train(round):
        tensors, figures = honest(round)
        if round.request.round == 2:
            {damage}
        return tensors, figures
    Round.train = train
"""


AN_HOUR_OFF = """
import datetime
class Later(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(hours=1)
datetime.datetime = Later
"""


def _check_code(process: Process, code: int) -> None:
    try:
        found = process.wait(900)
    except subprocess.TimeoutExpired:
        raise NotSurvived("the study did not end within 15 minutes") from None
    if found != code:
        raise NotSurvived(f"exit code {found} instead of {code}: {' / '.join(process.output.splitlines()[-3:])}")


def now() -> float:
    """Seconds since 1970, as in events.jsonl."""
    return time.time()
