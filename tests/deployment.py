"""A real SuperLink with real clients on loopback: TLS, authentication, a database. For tests and benchmarks.

    with SuperLink(tmp_path / "coordinator") as link, Client(tmp_path / "alder", link) as client:
        client.start()
        link.start_run(study="...", out="...")

Every process leads a process group, which the context managers end.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import yaml

from server.deployment.certificates import Authority, ServerPair, make_authority, make_server_certificate
from server.deployment.control import Connection, Control, FlowerRun, SuperLinkAway

ROOT = Path(__file__).parent.parent
LOOPBACK = "127.0.0.1"
PATHS = os.pathsep.join(
    [str(ROOT), *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(path).is_absolute())]
)
"""PYTHONPATH of every process: this tree, and what the tests themselves were given, such as a release of Flower."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """What every process gets: nothing talks to the outside, one thread each, this tree's code."""
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": PATHS,
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # Flower looks its commands up there
        "NO_PROXY": LOOPBACK,
        "no_proxy": LOOPBACK,
        **more,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def wait_until(condition: Callable[[], Any], seconds: float = 60.0, what: str = "", every_s: float = 0.2) -> Any:
    """The condition's first true value.

    Raises:
        AssertionError: it is not true after `seconds`.
    """
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if value := condition():
            return value
        time.sleep(every_s)
    raise AssertionError(f"not within {seconds:g} s: {what or condition}")


class Process:
    """A process that leads its group, with its output in a file."""

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str], **more: Any):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._file = log.open("ab")
        self.popen = subprocess.Popen(
            command, stdout=self._file, stderr=subprocess.STDOUT, env=dict(env), start_new_session=True, **more
        )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Signal the process alone."""
        with suppress(ProcessLookupError):
            os.kill(self.popen.pid, number)

    def wait(self, seconds: float = 30.0) -> int:
        return self.popen.wait(seconds)

    def end(self) -> None:
        """Kill the whole group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self._file.close()


class SuperLink:
    """A SuperLink in `folder`: certificates, database, log. It is started on entry and can be killed and started again.

    Args:
        authenticated: TLS and registered keys; False: neither.
        hosts: more host names or addresses in the certificate.
        command: flower-superlink, or what stands for it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        authenticated: bool = True,
        hosts: tuple[str, ...] = (),
        command: tuple[str, ...] = ("flower-superlink",),
    ):
        self.folder = folder
        self.command = command
        self.port = free_port()
        self.authenticated = authenticated
        self._process: Process | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if authenticated:
            authority = Authority(folder / "ca.key", folder / "ca.crt")
            make_authority(authority, "test")
            make_server_certificate(authority, ServerPair(folder / "server.key", folder / "server.crt"), hosts, 30)

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def certificate(self) -> Path | None:
        return self.folder / "ca.crt" if self.authenticated else None

    @property
    def pid(self) -> int:
        return self._process.popen.pid

    @property
    def output(self) -> str:
        return (self.folder / "superlink.log").read_text(errors="replace")

    def control(self) -> Control:
        return Control(Connection(self.address, self.certificate))

    def register(self, name: str, public_key: Path) -> int:
        """Register a site's public key (OpenSSH); the node's id."""
        from cryptography.hazmat.primitives import serialization as s

        key = s.load_ssh_public_key(public_key.read_bytes())
        with self.control() as control:
            return control.register(name, key.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))

    def online(self) -> list[str]:
        with self.control() as control:
            return [node.name or str(node.id) for node in control.nodes() if node.status == "online"]

    def start_run(self, **settings: str) -> int:
        """Submit this release's bundle; `settings` are study, out and overrides."""
        with self.control() as control:
            return control.start(settings)

    def submit(self, bundle: bytes) -> int:
        """Start a run of any bundle, as whoever reaches the Control API can."""
        import hashlib

        from flwr.common.serde import fab_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.fab import Fab
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        with ControlHttpClient.from_server_address(
            self.address,
            not self.authenticated,
            None if self.certificate is None else str(self.certificate),
            [RuntimeVersionHttpInterceptor(component_name="test")],
        ) as client:
            return client.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id

    def wait_for_run(self, run_id: int, seconds: float = 240.0) -> FlowerRun:
        with self.control() as control:
            return wait_until(
                lambda: (run := control.run(run_id)).finished and run, seconds, f"the end of run {run_id}", every_s=1.0
            )

    def start(self) -> None:
        """Start it, with the database that is there, and wait until it answers."""
        command = [*self.command, "--host", LOOPBACK, "--port", str(self.port)]
        command += ["--database", str(self.folder / "superlink.db"), "--disable-runtime-dependency-installation"]
        if self.authenticated:
            command += ["--ssl-ca-certfile", str(self.folder / "ca.crt"), "--enable-supernode-auth"]
            command += ["--ssl-certfile", str(self.folder / "server.crt")]
            command += ["--ssl-keyfile", str(self.folder / "server.key")]
        else:
            command += ["--insecure"]
        self._process = Process(
            command, self.folder / "superlink.log", environment(self.folder / "flwr"), cwd=self.folder
        )
        wait_until(self._answers, 180, f"the SuperLink\n{self.output[-2000:]}")

    def kill(self) -> None:
        """As kill -9 of it and of the ServerApps that it started, which Flower puts in sessions of their own."""
        if self._process is not None:
            self._process.end()
            self._process = None
            # until there is none: a ServerApp that is slow to start is started again, and there may be several
            while apps := processes_with(self.address).keys() & {"flwr-serverapp", "flower-superexec"}:
                for name in apps:
                    with suppress(ProcessLookupError, KeyError):
                        os.kill(processes_with(self.address)[name], signal.SIGKILL)
                time.sleep(0.1)

    def _answers(self) -> bool:
        assert self._process.popen.poll() is None, self.output
        try:
            with self.control() as control:
                control.nodes()
            return True
        except SuperLinkAway:
            return False

    def __enter__(self) -> SuperLink:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Client:
    """A hospital in `folder` (named as the folder) with `python -m client`; nothing is started on entry.

    Args:
        link: its SuperLink; the key is made and registered on entry, unless `register` is off.
        site: more of the site's file.
    """

    def __init__(self, folder: Path, link: SuperLink, *, register: bool = True, site: Mapping[str, Any] | None = None):
        self.folder = folder
        self.name = folder.name
        self.link = link
        self.site_file = folder / "site.yaml"
        self.state_dir = folder / "state"
        self.key = folder / "site.key"
        self._register = register
        self._site = dict(site or {})
        self.process: Process | None = None

    def write_site_file(self) -> None:
        superlink: dict[str, Any] = {"address": self.link.address}
        if self.link.authenticated:
            superlink |= {"root_certificates": str(self.link.certificate), "private_key": "site.key"}
        else:
            superlink |= {"insecure": True}
        values = {
            "site": self.name,
            "data": {"manifest": "manifest.csv"},
            "state_dir": "state",
            "superlink": superlink,
            **self._site,
            # some pictures at each, whose figures the tests look at
            "limits": {"min_records": 1, "min_labelled_per_step": 1, **self._site.get("limits", {})},
        }
        self.site_file.write_text(yaml.safe_dump(values))

    def start(self, *arguments: str, **env: str) -> None:
        """Start `python -m client --site FILE`."""
        self.process = Process(
            [sys.executable, "-m", "client", "--site", str(self.site_file), *arguments],
            self.folder / "client.out",
            environment(self.folder / "flwr-unused", **env),
            cwd=self.folder,
        )

    @property
    def output(self) -> str:
        return self.process.output if self.process is not None else ""

    @property
    def log(self) -> str:
        """The client's own log, with all that its processes wrote."""
        path = self.state_dir / "logs" / "client.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, text: str, seconds: float = 180.0) -> None:
        """Wait until `text` (a regular expression) was said."""

        def said() -> bool:
            assert self.process.popen.poll() is None or re.search(text, self.output), self.output + self.log[-3000:]
            return bool(re.search(text, self.output))

        try:
            wait_until(said, seconds, text)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}\n{self.log[-5000:]}") from None

    def children(self) -> dict[str, int]:
        """Living processes of this client by module: `client`, `client.node.supernode`, `client.node.worker`."""
        return processes_with(str(self.folder))

    def stop(self, number: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        self.process.signal(number)
        return self.process.wait(seconds)

    def __enter__(self) -> Client:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_site_file()
        if self.link.authenticated and not self.key.exists():
            from client.secure.keys import make_key, public_path

            make_key(self.key, self.name)
            if self._register:
                self.link.register(self.name, public_path(self.key))
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.end()
        for pid in self.children().values():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def processes_with(text: str) -> dict[str, int]:
    """Living processes with `text` in their command lines: the number of each by what follows `-m`, or by program."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not dead and any(text in word for word in words):
                name = words[words.index("-m") + 1] if "-m" in words else Path(words[min(1, len(words) - 1)]).name
                found[name] = int(folder.name)
    return found


def write_data(folder: Path, sizes: Mapping[str, int]) -> None:
    """Synthetic data of hospitals, by name and number of training pictures, in `folder`/NAME."""
    from sites.synth.config import SynthConfig
    from sites.synth.hospitals import write_hospitals

    each = [{"name": name, "train": size, "val": 6, "test": 6, "label_fraction": 0.5} for name, size in sizes.items()]
    write_hospitals(folder, SynthConfig.model_validate({"size": 32, "hospitals": each}), 1)


def hospitals(folder: Path, link: SuperLink, sizes: Mapping[str, int], stack: ExitStack) -> list[Client]:
    """Clients with synthetic data, entered into `stack`; none is started."""
    write_data(folder, sizes)
    return [stack.enter_context(Client(folder / name, link, site={"device": "cpu"})) for name in sizes]
