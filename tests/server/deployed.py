"""A real federation of the hospitals of a simulated study, and `python -m server` commands for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from client.secure.keys import public_path
from dusss_core.files import write_text
from feddusss import configfile
from server.runs.eventlog import Tail
from server.simulation.materialise import materialise
from server.study.config import StudyConfig
from tests.deployment import Client, Process, SuperLink, environment, wait_until

OURS = ("python", "-m", "server.deployment.superlink")
"""The SuperLink as the coordinator starts it."""


class Federation:
    """A SuperLink, clients by name, and the study that they are the hospitals of."""

    def __init__(self, folder: Path, study: StudyConfig, link: SuperLink):
        self.folder = folder
        self.link = link
        self.clients: dict[str, Client] = {}
        self.study_file = folder / "study.yaml"
        write_text(self.study_file, configfile.dump(study))
        connection = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{link.address}"\n'
        certificate = f'root-certificates = "{link.certificate}"\n' if link.authenticated else "insecure = true\n"
        write_text(link.folder / "flwr" / "config.toml", connection + certificate)

    def start_clients(self, seconds: float = 240) -> None:
        """Start the clients that do not run, and wait until all are connected."""
        for client in self.clients.values():
            if client.process is None or client.process.popen.poll() is not None:
                client.start()
        self.wait_online(set(self.clients), seconds)

    def wait_online(self, names: set[str], seconds: float = 240) -> None:
        wait_until(lambda: names <= set(self.link.online()), seconds, f"{sorted(names)} to be connected")

    def server(self, command: str, *arguments: str | Path, log: str = "") -> Process:
        """Start `python -m server COMMAND ARGUMENTS`."""
        return Process(
            [sys.executable, "-m", "server", command, *map(str, arguments), "--coordinator", str(self.link.folder)],
            self.folder / f"{log or command}.out",
            environment(self.folder / "flwr-unused"),
            cwd=self.folder,
        )

    def told(self, command: str, *arguments: str | Path) -> str:
        """What such a command prints."""
        done = subprocess.run(
            [sys.executable, "-m", "server", command, *map(str, arguments), "--coordinator", str(self.link.folder)],
            env=environment(self.folder / "flwr-unused"),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.stdout + done.stderr

    def run(self, out: Path, *arguments: str) -> Process:
        """Start `python -m server run` of the study."""
        return self.server("run", self.study_file, "--out", out, *arguments, log=f"run-{out.name}")

    def run_and_stop_after(self, out: Path, round: int) -> None:
        """Start the study, and stop it as a person would once it has saved `round` of segmentation."""
        process = self.run(out)
        try:
            wait_for_event(out, "on_round_end", lambda arguments: arguments[:2] == ["segment", round])
            assert "is stopped" in self.told("stop", out)
        finally:
            process.end()

    def run_to_end(self, out: Path, *arguments: str, seconds: float = 600) -> str:
        """Run the study and return what was printed; it must succeed."""
        process = self.run(out, *arguments)
        try:
            code = process.wait(seconds)
        finally:
            process.end()
        assert code == 0, process.output + self.link.output[-3000:]
        return process.output


@contextmanager
def federation(folder: Path, study: StudyConfig, **site: Any) -> Iterator[Federation]:
    """A SuperLink and one client for each hospital that the study simulates; the clients are not started."""
    secure = study.federation.secure_aggregation
    plain = study.federation.model_copy(update={"secure_aggregation": False})
    # these hospitals make their keys themselves
    files = materialise(study.model_copy(update={"federation": plain}), folder / "hospitals")
    if secure:
        site = {"secure_aggregation": {"peers": "../peers.txt"}, **site}
    with ExitStack() as stack:
        link = stack.enter_context(SuperLink(folder / "coordinator", command=OURS))
        there = Federation(folder, study, link)
        for file in files:
            client = Client(file.parent, link, site={"device": "cpu", **site})
            there.clients[client.name] = stack.enter_context(client)
        if secure:
            lines = [f"{name} {public_path(client.key).read_text()}" for name, client in there.clients.items()]
            write_text(files[0].parent.parent / "peers.txt", "".join(lines))
        yield there


def events(out: Path) -> list[dict[str, Any]]:
    """What the ServerApps of a run have told so far."""
    return list(Tail(out).read())


def wait_for_event(
    out: Path, name: str, condition: Callable[[list[Any]], bool] = lambda arguments: True, seconds: float = 240
) -> list[Any]:
    """Wait until a ServerApp has told of such an event; returns its arguments."""

    def found() -> list[Any] | None:
        told = [event["args"] for event in events(out) if event["event"] == name and condition(event["args"])]
        return told[-1] if told else None

    return wait_until(found, seconds, f"{name} in {out}")


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
