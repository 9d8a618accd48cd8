"""Pictures per second of `python -m dusss_core predict` against the bare forward pass.

    python -m benchmarks.predict MODEL PICTURES [--number N] [--threads T]

Both in this process, in turns of some batches, so that whatever else the machine does meets both alike: the bare pass
sees the same number of made-up inputs in the same batches. `predict` reads files, scales, scales back, and writes PNGs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory


def main() -> None:
    """Print the two rates and their ratio, turn by turn and over all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turn", type=int, default=4, help="batches of a turn (4)")
    arguments = parser.parse_args()

    import numpy as np
    import torch

    import dusss_core
    from dusss_core.predicting.inputs import find_jobs
    from dusss_core.predicting.predict import predict

    torch.set_num_threads(arguments.threads)
    student = dusss_core.load(arguments.model, "cpu")
    image, batch = student.about.image, student.batch
    files = [str(job.files[0]) for job in find_jobs([arguments.pictures], Path("none"))][: arguments.number]
    inputs = np.zeros((batch, image.channels, image.size, image.size), np.uint8)
    student.logits(inputs)  # what happens once

    def bare(some: list[str]) -> None:
        for start in range(0, len(some), batch):
            student.logits(inputs[: len(some) - start])

    def whole(some: list[str]) -> None:
        with TemporaryDirectory() as out:
            predict(student, some, Path(out))

    step, spent = arguments.turn * batch, np.zeros((2, 2))
    print(f"{len(files)} pictures, {arguments.threads} threads, batches of {batch}", flush=True)
    for number, start in enumerate(range(0, len(files), step)):
        some = files[start : start + step]
        # who begins changes, so that neither always finds the caches warm
        for which in (0, 1) if number % 2 else (1, 0):
            spent[which] += _timed((bare, whole)[which], some)
        done = min(start + step, len(files))
        print(f"{done}: {_told(spent, done)}", flush=True)


def _timed(work: Callable[[list[str]], None], some: list[str]) -> tuple[float, float]:
    """Seconds by the clock and of this process."""
    wall, own = time.perf_counter(), time.process_time()
    work(some)
    return time.perf_counter() - wall, time.process_time() - own


def _told(spent, n: int) -> str:
    (bare, bare_own), (whole, whole_own) = spent
    rates = f"bare {n / bare:.2f}, predict {n / whole:.2f} pictures a second: {bare / whole:.2f}"
    return f"{rates}; by processor time {n / bare_own:.2f} and {n / whole_own:.2f}: {bare_own / whole_own:.2f}"


if __name__ == "__main__":
    main()
