"""Whole cells of the accuracy grid on one GPU machine without network, several side by side, within so many minutes.

    OUT=DIR benchmarks/gpu_grid.sh .gpu/grid --cells FILE --workers 8 --minutes 9

FILE names a cell a line, first come first served: METHOD LABELS SETTING SEED PROFILE, such as
`dusss 0.05 federated 1 cpu`. A step of a small network keeps a processor's core busy and the GPU hardly, so cells
beside one another cost little, until the GPU works all the time (log.txt says it). A cell that is done is a line of
results.jsonl in DIR, as benchmarks/accuracy.py writes it (`python -m benchmarks.gpu.grid_results DIR`); what is at work
when the time is over is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

RESULTS, LOG = "results.jsonl", "log.txt"
_FIELDS = ("method", "labels", "setting", "seed", "profile")
_SHARED = (
    "benchmarks.accuracy",
    "benchmarks.grid.methods.presets",
    "client.app",
    "client.work.workbench",
    "dusss_core.training",
    "scipy.ndimage",
    "server.simulation.inprocess",
    "server.simulation.local",
    "timm",
)
"""Imported before a fork, and so only once."""
_ENOUGH = 90.0
"""Percent of the time in which the GPU works from which on one more cell beside the others gains nothing."""


def main(argv: list[str] | None = None) -> int:
    """Unpack, then work off the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, help="the folder that benchmarks.gpu.grid_pack makes")
    parser.add_argument("--cells", type=Path, required=True, metavar="FILE", help="METHOD LABELS SETTING SEED PROFILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for results.jsonl and log.txt")
    parser.add_argument("--workers", type=int, default=8, help="cells side by side at first (8)")
    parser.add_argument("--most", type=int, default=0, help="and as many while the GPU waits (as --workers)")
    parser.add_argument("--minutes", type=float, default=9.0, help="until it ends (9)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="of every study")
    arguments = parser.parse_args(argv)
    end = time.time() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        _Queue(arguments, Path(folder), end).work()
    return 0


class _Queue:
    """Cells, at most so many at a time, each in a process of its own."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, end: float):
        from benchmarks.gpu.grid_machine import stand_in, unpack

        self.arguments, self.folder, self.end = arguments, folder, end
        lines = arguments.cells.read_text(encoding="utf-8").splitlines()
        self.waiting = [line.split() for line in lines if line.strip()]
        self.began = time.time()
        self.workers = arguments.workers
        self.about = unpack(arguments.pack, folder)
        stand_in(folder, self.about)
        for name in _SHARED:
            importlib.import_module(name)

    def work(self) -> None:
        """Until the list or the time is over."""
        start = multiprocessing.get_context("fork" if _may_fork() else "spawn")
        self.say(f"{len(self.waiting)} cells, {self.workers} at a time, each by {start.get_start_method()}")
        running: dict[str, Any] = {}
        looked = time.time() + 30  # they begin with pictures, and the GPU waits
        while (self.waiting or running) and time.time() < self.end:
            while self.waiting and len(running) < self.workers:
                cell = self.waiting.pop(0)
                given = (self.arguments, self.folder, self.about, cell)
                running[" ".join(cell)] = process = start.Process(target=_one, args=given)
                process.start()
                self.say(f"began: {' '.join(cell)}")
            time.sleep(0.5)
            for name in [name for name, process in running.items() if process.exitcode is not None]:
                self.say(f"ended with {running.pop(name).exitcode}: {name}")
            if time.time() - looked > 10:
                looked, busy = time.time(), _busy()
                self.workers = min(max(self.workers, self.arguments.most), self.workers + (busy < _ENOUGH))
                self.say(f"the GPU works {busy:.0f} % of the time with {len(running)} cells")
        for name, process in running.items():
            process.kill()
            self.say(f"lost: {name}")
            _tell(self.arguments.out, self.folder, name.split())

    def say(self, text: str) -> None:
        """Print a line, and keep it."""
        line = f"{time.time() - self.began:.0f} s: {text}"
        print(line, flush=True)
        with (self.arguments.out / LOG).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _may_fork() -> bool:
    """Whether CUDA starts in a child of this process, which has imported everything: it is tried."""
    child = multiprocessing.get_context("fork").Process(target=_touch)
    child.start()
    child.join(60)
    return child.exitcode == 0


def _touch() -> None:
    import torch

    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")


def _busy() -> float:
    """Percent of the latest time in which the GPU worked, over five looks; 100 where nobody says."""
    line = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        looks = [float(subprocess.run(line, capture_output=True, check=True).stdout.split()[0]) for _ in range(5)]
    except (OSError, ValueError, IndexError, subprocess.CalledProcessError):
        return 100.0
    return sum(looks) / len(looks)


def _one(arguments: argparse.Namespace, folder: Path, about: dict[str, Any], cell: list[str]) -> None:
    """Measure a cell, and add what comes out to results.jsonl and log.txt."""
    import torch

    from benchmarks.gpu.grid_machine import stand_in

    torch.set_num_threads(1)
    log = _log_of(folder, cell)
    with log.open("w", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            stand_in(folder, about)
            result = _measured(arguments, folder, dict(zip(_FIELDS, cell, strict=True)))
        except Exception:
            traceback.print_exc(file=file)
            result = None
    _tell(arguments.out, folder, cell)
    if result is None:
        raise SystemExit(1)
    with (arguments.out / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def _measured(arguments: argparse.Namespace, folder: Path, values: dict[str, str]) -> dict[str, Any]:
    from benchmarks import accuracy
    from benchmarks.grid.cell import Cell
    from benchmarks.grid.trial import Clock

    labels, seed = float(values.pop("labels")), int(values.pop("seed"))
    cell = Cell(dataset="qata", labels=labels, seed=seed, **values)
    overrides = ("simulation.workers=1", *arguments.overrides)
    return accuracy.measure(cell, folder / "data", folder / "work" / cell.name, Clock(None), overrides)


def _log_of(folder: Path, cell: list[str]) -> Path:
    return folder / f"{'-'.join(cell)}.log"


def _tell(out: Path, folder: Path, cell: list[str]) -> None:
    """The end of a cell's own log into the common one."""
    log = _log_of(folder, cell)
    lines = log.read_text(encoding="utf-8").splitlines()[-60:] if log.is_file() else []
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write("".join(f"    {log.stem}: {line}\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
