"""A real federation on this machine: SuperLink, sites and commands as processes of their own, on loopback.

Used by tests and benchmarks. Every process is started with a mark in its environment, and leaving the `with` block ends
all that bear it: Flower starts children that leave their parent's process group.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_MARK = "FEDDUSSS_LOOPBACK"


class Loopback:
    """A SuperLink and its sites.

    Args:
        folder: for logs, the coordinator's folder and each node's FLWR_HOME.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.coordinator = folder / "coordinator"
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen] = {}
        self._mark = uuid.uuid4().hex
        flower_home = self.coordinator / "flwr"
        flower_home.mkdir(parents=True)
        (flower_home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers; a database keeps what it knows for the next one."""
        command = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--database", str(self.coordinator / "superlink.db"), "--disable-runtime-dependency-installation"]
        self.start("superlink", command, FLWR_HOME=str(self.coordinator / "flwr"))
        wait_for(lambda: self.alive("superlink") and answers(self.port), 60, "the SuperLink to answer")

    def start_node(self, name: str, site_file: Path) -> None:
        """Start a SuperNode for a site's file."""
        command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}", "--port"]
        command += [str(free_port()), "--node-config", f'site-config="{site_file}"']
        self.start(name, command, FLWR_HOME=str(self.folder / "nodes" / name))

    def server(self, *arguments: str | Path) -> subprocess.Popen:
        """Start `python -m server ARGUMENTS --coordinator ...`."""
        command = [sys.executable, "-m", "server", *map(str, arguments), "--coordinator", str(self.coordinator)]
        return self.start(f"server-{arguments[0]}", command)

    def start(self, name: str, command: list[str], **environment: str) -> subprocess.Popen:
        """Start a process; its output goes to logs/NAME.log, after what is there already."""
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        program = Path(sys.executable).parent / command[0]
        command = [str(program) if program.is_file() else command[0], *command[1:]]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, **_ENVIRONMENT, _MARK: self._mark, "FEDDUSSS_NAME": name, **environment},
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def log(self, name: str) -> str:
        """What a process has written."""
        return (self.folder / "logs" / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def alive(self, name: str) -> bool:
        """Whether a process still runs.

        Raises:
            RuntimeError: it has ended, with the last of what it wrote.
        """
        if (code := self.processes[name].poll()) is not None:
            raise RuntimeError(f"{name} ended with code {code}:\n{self.log(name)[-2000:]}")
        return True

    def kill(self, name: str, *, children: bool = True) -> None:
        """End a process as a crash would (SIGKILL); `children`: and all that it started."""
        process = self.processes.pop(name)
        for pid in self._bearing(f"FEDDUSSS_NAME={name}") if children else [process.pid]:
            _kill(pid)
        process.wait(30)

    def pids(self, program: str, name: str | None = None) -> list[int]:
        """Processes of this federation whose command line holds `program`, those under `name` only if it is given."""
        pids = self._bearing(f"FEDDUSSS_NAME={name}" if name else f"{_MARK}={self._mark}")
        return [pid for pid in pids if program in _command(pid)]

    def end(self) -> None:
        """End every process of this federation."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        give_up = time.monotonic() + 5
        while self._bearing(f"{_MARK}={self._mark}") and time.monotonic() < give_up:
            time.sleep(0.2)
            for process in self.processes.values():
                process.poll()
        while pids := self._bearing(f"{_MARK}={self._mark}"):
            for pid in pids:
                _kill(pid)
            for process in self.processes.values():
                process.poll()
            time.sleep(0.1)
        self.processes.clear()

    def _bearing(self, entry: str) -> list[int]:
        """Living processes of this federation with `entry` in their environment."""
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                entries = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if entry.encode() in entries and f"{_MARK}={self._mark}".encode() in entries:
                found.append(int(folder.name))
        return found


def wait_for(condition: Callable[[], object], seconds: float, what: str, poll: float = 0.2):
    """Wait until `condition` gives something true, and return that.

    Raises:
        TimeoutError: it did not within `seconds`.
    """
    give_up = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() >= give_up:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(poll)
    return result


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port: int) -> bool:
    """Whether somebody listens on a port of loopback."""
    with socket.socket() as caller:
        caller.settimeout(1)
        return caller.connect_ex(("127.0.0.1", port)) == 0


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


_ENVIRONMENT = {
    # Flower's programs start each other by name
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    # the apps are imported from this source tree
    "PYTHONPATH": str(ROOT),
}
