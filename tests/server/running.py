"""Processes of one test, by name, for what the coordinator starts."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

from tests.deployment import LOOPBACK, Process, environment, processes_with


class Running:
    """Starts processes, and ends them all when the `with` block is left, with what they started.

    Args:
        folder: for logs and each process's FLWR_HOME.
        marks: texts that stand in the command lines of what these processes start in sessions of their own.
    """

    def __init__(self, folder: Path, *marks: str):
        self.folder = folder
        self._marks = (str(folder), *marks)
        self.processes: dict[str, Process] = {}
        self._ended: list[Process] = []

    def start(self, name: str, command: list[str], **env: str) -> Process:
        """Start a process; its output goes to NAME.log. One that had the name before is forgotten, not ended."""
        if name in self.processes:
            self._ended.append(self.processes[name])
        log = self.folder / f"{name}.log"
        self.processes[name] = Process(command, log, environment(self.folder / name, **env), cwd=self.folder)
        return self.processes[name]

    def log(self, name: str) -> str:
        return self.processes[name].output

    def alive(self, name: str) -> bool:
        """Whether it still runs.

        Raises:
            AssertionError: it has ended, with the last of what it wrote.
        """
        assert self.processes[name].popen.poll() is None, self.log(name)[-3000:]
        return True

    def __enter__(self) -> Running:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.processes.values(), *self._ended):
            process.end()
        for mark in self._marks:
            for pid in processes_with(mark).values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def answers(port: int) -> bool:
    """Whether somebody listens on a port of loopback."""
    with socket.socket() as caller:
        caller.settimeout(1)
        return caller.connect_ex((LOOPBACK, port)) == 0
