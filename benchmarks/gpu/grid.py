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

from benchmarks.grid.cell import Cell
from dusss_core.errors import UserError
from feddusss import cli

RESULTS, LOG = "results.jsonl", "log.txt"
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
    cli.add_common_arguments(parser)
    return cli.run(_main, parser, argv)


def _main(arguments: argparse.Namespace) -> int:
    end = time.time() + 60 * arguments.minutes
    cells = cells_of(arguments.cells)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        _Queue(arguments, cells, Path(folder), end).work()
    return cli.OK


def cells_of(file: Path) -> list[Cell]:
    """The cells that a file names, one a line.

    Raises:
        UserError: it is not there, or a line of it names none. Methods and settings are looked at in their turn.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", "name a file with a cell a line") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            method, labels, setting, seed, profile = line.split()
            labels, seed = float(labels), int(seed)
        except ValueError:
            raise UserError(
                f"{file}: line {number}: '{line}' is no cell",
                "write METHOD LABELS SETTING SEED PROFILE, such as: dusss 0.05 federated 1 cpu",
            ) from None
        found.append(Cell("qata", labels, method, setting, profile, seed))
    return found


class _Queue:
    """Cells, at most so many at a time, each in a process of its own."""

    def __init__(self, arguments: argparse.Namespace, cells: list[Cell], folder: Path, end: float):
        from benchmarks.gpu.grid_machine import stand_in, unpack

        self.arguments, self.waiting, self.folder, self.end = arguments, cells, folder, end
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
                running[cell.name] = process = start.Process(target=_one, args=given)
                process.start()
                self.say(f"began: {cell.name}")
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
            _tell(self.arguments.out, _log_of(self.folder, name))

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


def _one(arguments: argparse.Namespace, folder: Path, about: dict[str, Any], cell: Cell) -> None:
    """Measure a cell, and add what comes out to results.jsonl and log.txt."""
    import torch

    from benchmarks.accuracy import measure
    from benchmarks.gpu.grid_machine import stand_in
    from benchmarks.grid.trial import Clock

    torch.set_num_threads(1)
    log = _log_of(folder, cell.name)
    with log.open("w", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            stand_in(folder, about)
            overrides = ("simulation.workers=1", *arguments.overrides)
            result = measure(cell, folder / "data", folder / "work" / cell.name, Clock(None), overrides)
        except Exception:
            traceback.print_exc(file=file)
            result = None
    _tell(arguments.out, log)
    if result is None:
        raise SystemExit(1)
    with (arguments.out / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**result, "commit": about["commit"]}) + "\n")


def _log_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


def _tell(out: Path, log: Path) -> None:
    """The end of a cell's own log into the common one."""
    lines = log.read_text(encoding="utf-8").splitlines()[-60:] if log.is_file() else []
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write("".join(f"    {log.stem}: {line}\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
