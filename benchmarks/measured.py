"""What the benchmarks of speed share: a command run in another checkout and timed, and the stamp of a JSON file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Container
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from dusss_core.errors import UserError
from dusss_core.files import write_text

HERE = Path(__file__).parent.parent
"""The checkout that this is."""
PROBES = Path(__file__).parent / "probes"
RESULTS = Path(__file__).parent / "results" / "performance"


@dataclass(frozen=True)
class Done:
    """A command that has ended, its children included."""

    output: str
    wall_s: float
    cpu_s: float
    """User and system time of it and of all processes that it waited for."""


def run(
    command: list[str], checkout: Path = HERE, env: dict[str, str] | None = None, codes: Container[int] = (0,)
) -> Done:
    """Run a command with the code of `checkout`.

    Args:
        codes: exit codes with which it counts as done.

    Raises:
        UserError: it failed; with the end of what it said.
    """
    path = os.pathsep.join([str(checkout), str(PROBES)])
    environment = {**os.environ, "PYTHONPATH": path, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    started, used = time.perf_counter(), _children_cpu_s()
    process = subprocess.Popen(
        command, cwd=checkout, env={**environment, **(env or {})}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    output, errors = process.communicate()
    wall, used = time.perf_counter() - started, _children_cpu_s() - used
    if process.returncode not in codes:
        raise UserError(f"{' '.join(command)}: ended with code {process.returncode}", errors[-3000:] or output[-3000:])
    return Done(output, wall, used)


def _children_cpu_s() -> float:
    """Processor time of all children that have ended so far."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def stamp(against: Path | None = None) -> dict[str, Any]:
    """When, with which code and on what machine something was measured."""
    return {
        "date": date.today().isoformat(),
        "commit": commit_of(HERE),
        "against": None if against is None else commit_of(against),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()},
    }


def commit_of(checkout: Path) -> str:
    """The short commit of a checkout; with a + if files differ from it; "unknown" outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short=7", "HEAD")
    return f"{commit}{'+' if git('status', '--porcelain', '--untracked-files=no') else ''}" if commit else "unknown"


def write(path: Path, document: dict[str, Any]) -> None:
    """Write what was measured, with figures of four digits at least."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(_rounded(document), indent=1, allow_nan=False) + "\n")
    print(f"written: {path}", file=sys.stderr)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if abs(value) < 100 else round(value, 1)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
