"""What a real deployment costs: seconds per round beyond the slowest site's own work, and peak memory per process.

    python benchmarks/deployment_overhead.py                   a small model, 2 hospitals, 5 rounds
    python benchmarks/deployment_overhead.py --model paper     the paper's student of 14.75 M parameters
    python benchmarks/deployment_overhead.py --plain           with Flower's own flower-supernode, for comparison

A real SuperLink (TLS, authentication, database) and real clients on loopback, on synthetic pictures. `--plain` starts
flower-supernode as Flower's documentation does: a process per message, and its own polling. The first round, in which
the sites make their caches, does not count. Exit code 1 if the median is above `--target`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from feddusss import cli
from tests.deployment import Client, Process, SuperLink, environment, free_port, hospitals, processes_with, wait_until

TARGET_S = {"small": 1.0, "paper": 5.0}
STUDENT = {"small": {"width": 4}, "paper": {"width": 64}}


def main(argv: list[str] | None = None) -> int:
    """Run the study, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(STUDENT), default="small", help="the student (small)")
    parser.add_argument("--sites", type=int, default=2, help="hospitals (2)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--plain", action="store_true", help="Flower's own SuperNode instead of python -m client")
    parser.add_argument("--target", type=float, help="largest median that passes (small: 1 s, paper: 5 s)")
    parser.add_argument("--against", type=Path, help="also run this command of another checkout, before and after")
    parser.add_argument("--json", type=Path, help="keep what was measured in this file")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_measure, parser, argv)


def overhead(folder: Path) -> list[float]:
    """Seconds of each round of the run in `folder` beyond the slowest site's own work."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rounds = [line["round"] for line in lines if line["site"] == "*" and "seconds" in line]
    return [
        max(line["seconds"] for line in lines if line["round"] == number and line["site"] == "*" and "seconds" in line)
        - max(line["seconds"] for line in lines if line["round"] == number and line["site"] != "*")
        for number in rounds
    ]


def _measure(arguments: argparse.Namespace) -> int:
    from benchmarks import measured

    target = arguments.target or TARGET_S[arguments.model]
    older = [_older(arguments)] if arguments.against else []
    seconds, processes, start = deploy(arguments)
    older += [_older(arguments)] if arguments.against else []
    _print(arguments, seconds, processes, target)
    for one in older:
        told = ", ".join(f"{name} {figures['cpu_s']:g} CPU-s" for name, figures in one["processes"].items())
        print(f"{arguments.against}: median {one['median_s']:.1f} s; {told}")
    if arguments.json:
        document = {
            "what": "deployed",
            **measured.stamp(arguments.against),
            "older": older,
            "model": arguments.model,
            "sites": arguments.sites,
            # who it is, each round, validation of the last model, test
            "messages_per_site": arguments.rounds + 3,
            "client": "flower-supernode" if arguments.plain else "python -m client",
            "beyond_slowest_site_s": seconds,
            "median_s": statistics.median(seconds[1:]),
            "target_s": target,
            "start_cpu_s": start,
            "processes": {name: {"peak_mb": mb, "cpu_s": cpu} for name, (mb, cpu) in sorted(processes.items())},
        }
        measured.write(arguments.json, document)
    return cli.OK if statistics.median(seconds[1:]) <= target else cli.FAILED


def _older(arguments: argparse.Namespace) -> dict[str, Any]:
    """What this command of another checkout says: its median, and CPU time and peak memory of its processes."""
    from benchmarks import measured

    folder = arguments.against.resolve()
    command = [sys.executable, str(folder / "benchmarks" / "deployment_overhead.py"), "--model", arguments.model]
    command += ["--sites", str(arguments.sites), "--rounds", str(arguments.rounds)]
    said = measured.run(command, folder, env={"COLUMNS": "200"}, codes=(cli.OK, cli.FAILED)).output
    median = re.search(r"median without the first: ([\d.]+) s", said)
    if median is None:
        raise RuntimeError(f"{folder}: {said[-2000:]}")
    rows = re.findall(r"│ (\S+) +│ +(\d+) +│ +([\d.]+) +│", said)
    processes = {name: {"peak_mb": float(mb), "cpu_s": float(cpu)} for name, mb, cpu in rows}
    return {"median_s": float(median[1]), "processes": processes}


def deploy(arguments: argparse.Namespace) -> tuple[list[float], dict[str, tuple[float, float]], float]:
    """Run the study.

    Returns:
        The seconds of each round beyond the slowest site's work; of each process its peak memory in MB and its CPU time
        in s; what of SuperLink's and ServerApp's CPU time is their start.
    """
    from benchmarks import measured

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        # as start.sh does it
        command = (sys.executable, "-m", "server.deployment.superlink")
        link = stack.enter_context(SuperLink(folder / "coordinator", command=command))
        sizes = {f"site_{number}": 8 for number in range(1, arguments.sites + 1)}
        clients = hospitals(folder, link, sizes, stack)
        for client in clients:
            if arguments.plain:
                stack.callback(_plain_supernode(client).end)
            else:
                client.start()
        wait_until(lambda: len(link.online()) == len(clients), 120, "the hospitals")
        start = _memory_and_time(link.pid)[1]
        with _watched(folder, link) as processes:
            run = link.start_run(study=str(_study(folder, arguments)), out=str(folder / "run"))
            ended = link.wait_for_run(run, 60.0 + 120.0 * arguments.rounds)
        if ended.outcome != "completed":
            print(link.output[-3000:], file=sys.stderr)
            raise RuntimeError(f"the run ended as {ended.outcome}")
        seconds = overhead(folder / "run")
    imports = "import server.app, server.rounds.coordinator, dusss_core.training"
    return seconds, processes, start + measured.run([sys.executable, "-c", imports]).cpu_s


def _print(
    arguments: argparse.Namespace, seconds: list[float], processes: dict[str, tuple[float, float]], target: float
) -> None:
    from rich.console import Console
    from rich.table import Table

    how = "flower-supernode" if arguments.plain else "python -m client"
    print(f"{arguments.model} student, {arguments.sites} hospitals, {how}")
    print(f"seconds per round beyond the slowest site's work: {', '.join(f'{value:.1f}' for value in seconds)}")
    print(f"median without the first: {statistics.median(seconds[1:]):.1f} s (target {target:g} s)")
    table = Table("process", "peak memory (MB)", "CPU time (s), start included")
    for process, (megabytes, cpu) in sorted(processes.items()):
        table.add_row(process, f"{megabytes:.0f}", f"{cpu:.1f}")
    Console().print(table)


def _study(folder: Path, arguments: argparse.Namespace) -> Path:
    import yaml

    values = {
        "study": "overhead",
        "image": {"size": 32},
        "method": {"preset": "mean_teacher"},
        "student": STUDENT[arguments.model],
        "segment": {"rounds": arguments.rounds, "batch": 8, "epochs": 1},
        "federation": {"min_sites": arguments.sites},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _plain_supernode(client: Client) -> Process:
    command = ["flower-supernode", "--superlink", client.link.address, "--port", str(free_port())]
    command += ["--root-certificates", str(client.link.certificate), "--auth-supernode-private-key", str(client.key)]
    command += ["--node-config", f'site-config="{client.site_file}"']
    env = environment(client.folder / "flwr")
    del env["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"]
    return Process(command, client.folder / "supernode.log", env, cwd=client.folder)


@contextmanager
def _watched(folder: Path, link: SuperLink):
    """Peak resident memory (MB) and CPU time so far (s) of the processes, by name; the largest of a kind."""
    seen: dict[str, tuple[float, float]] = {}
    over = threading.Event()

    def watch() -> None:
        # seldom: to look through all processes takes time that the deployment would have
        while not over.wait(3.0):
            for text in (str(folder), link.address):
                for name, pid in processes_with(text).items():
                    now = _memory_and_time(pid)
                    seen[name] = tuple(map(max, seen.get(name, now), now))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _memory_and_time(pid: int) -> tuple[float, float]:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    peak = next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)
    return peak, (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
