"""A study of many sites on a Ray cluster of two nodes, which here are two `ray start` on one machine.

    python -m benchmarks.ray_nodes                        300 sites, 2 rounds
    python -m benchmarks.ray_nodes --sites 12 --rounds 1  a rehearsal

It starts a head and a second node of `--cpus` each, runs `python -m server simulate STUDY --engine ray` with
RAY_ADDRESS naming the head, and ends both nodes. Sites, run and state lie in one folder, as they would on a shared
disk. Between machines the same three commands do it; docs/deploy.md has them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmarks import measured
from dusss_core.errors import UserError
from feddusss import cli

_START_S = 120.0


def main(argv: list[str] | None = None) -> int:
    """Run the study, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=300, help="sites (300)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds (2)")
    parser.add_argument("--cpus", type=int, default=1, help="of each node (1)")
    parser.add_argument("--json", type=Path, help="keep what was measured in this file")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_measure, parser, argv)


def _measure(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, port = Path(name), _free_port()
        study = _study(folder, arguments.sites, arguments.rounds)
        head = ["--head", "--node-ip-address", "127.0.0.1", "--port", str(port), "--include-dashboard", "false"]
        stack.enter_context(_node([*head, "--num-cpus", str(arguments.cpus)], folder / "head.log"))
        _wait_for(port)
        second = ["--address", f"127.0.0.1:{port}", "--num-cpus", str(arguments.cpus)]
        stack.enter_context(_node(second, folder / "second.log"))
        peak = stack.enter_context(_peak_memory())
        command = [
            sys.executable,
            "-m",
            "server",
            "simulate",
            str(study),
            "--engine",
            "ray",
            "--out",
            str(folder / "run"),
        ]
        done = measured.run(command, env={"RAY_ADDRESS": f"127.0.0.1:{port}"})
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    rounds = [line["seconds"] for line in lines if line["site"] == "*" and "seconds" in line]
    answered = min(
        sum(line["site"] != "*" and line["round"] == number and bool(line["accepted"]) for line in lines)
        for number in range(1, arguments.rounds + 1)
    )
    document = {
        "what": "ray",
        **measured.stamp(),
        "sites": arguments.sites,
        "nodes": 2,
        "cpus": arguments.cpus,
        "answered": answered,
        "round_s": rounds,
        "whole_s": done.wall_s,
        "site_workers": int(peak.pop("site workers", 0)),
        "peak_mb": dict(peak),
    }
    print(json.dumps(document, indent=1))
    if arguments.json:
        measured.write(arguments.json, document)
    return cli.OK if answered == arguments.sites else cli.FAILED


def _study(folder: Path, sites: int, rounds: int) -> Path:
    hospitals = [
        {"name": f"site_{number:04d}", "train": 4, "val": 2, "test": 2, "label_fraction": 0.5}
        for number in range(sites)
    ]
    values = {
        "study": "ray",
        "image": {"size": 32},
        "method": {"preset": "mean_teacher"},
        "student": {"width": 4},
        "segment": {"rounds": rounds, "batch": 4, "epochs": 1},
        "federation": {"min_sites": sites},
        "simulation": {"data": {"kind": "synth", "synth": {"size": 32, "hospitals": hospitals}}, "threads": 1},
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


@contextmanager
def _node(arguments: list[str], log: Path) -> Iterator[None]:
    """A node of the cluster; ended with all that it started."""
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats", *arguments]
    env = {**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "PYTHONPATH": str(measured.HERE)}
    with log.open("wb") as file:
        node = subprocess.Popen(command, stdout=file, stderr=file, env=env, start_new_session=True)
        try:
            yield
        finally:
            mine = _descendants(node.pid)
            node.terminate()  # with --block it ends what it started
            with suppress(subprocess.TimeoutExpired):
                node.wait(30)
            for pid in [node.pid, *mine]:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            node.wait()


@contextmanager
def _peak_memory() -> Iterator[dict[str, float]]:
    """Peak resident memory in MB of the processes below this one: the largest of each kind, and of all. Also how
    many site workers there were at once."""
    peak: dict[str, float] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(2.0):
            now: dict[str, list[float]] = {}
            for pid in _descendants(os.getpid()):
                with suppress(OSError, ValueError):
                    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                    now.setdefault(_kind(pid), []).append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
            figures = {kind: max(values) for kind, values in now.items()}
            figures["all"] = sum(map(sum, now.values()))
            figures["site workers"] = len(now.get("site worker", ()))
            for kind, value in figures.items():
                peak[kind] = max(peak.get(kind, 0.0), value)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def _kind(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if "server" in words:
        return "coordinator"
    return "site worker" if words[0].startswith("ray::ClientAppActor") else "ray's own"


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(folder.name))
    found, new = [], [pid]
    while new:
        new = [child for one in new for child in parents.get(one, ())]
        found += new
    return found


def _wait_for(port: int) -> None:
    give_up = time.monotonic() + _START_S
    while time.monotonic() < give_up:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.5)
    raise UserError(f"the head did not start within {_START_S:.0f} s", "is Ray installed? pip install 'feddusss[ray]'")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
