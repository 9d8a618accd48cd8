"""Pictures per second of `python -m dusss_core predict` against the bare forward pass.

    python -m benchmarks.predict MODEL PICTURES [--number N]

Both in this process, on one thread, in turns: the bare pass sees the same number of made-up inputs in the same batches.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory


def main() -> None:
    """Print the two rates and their ratio, by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--number", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    import numpy as np
    import torch

    import dusss_core
    from dusss_core.predicting.inputs import find_jobs
    from dusss_core.predicting.predict import predict

    torch.set_num_threads(1)
    student = dusss_core.load(arguments.model, "cpu")
    image, batch = student.about.image, student.batch
    files = [str(job.files[0]) for job in find_jobs([arguments.pictures], Path("none"))][: arguments.number]
    inputs = np.zeros((batch, image.channels, image.size, image.size), np.uint8)
    student.logits(inputs)  # what happens once
    for _ in range(arguments.rounds):
        wall, own = time.perf_counter(), time.process_time()
        for start in range(0, len(files), batch):
            student.logits(inputs[: len(files) - start])
        bare, bare_own = time.perf_counter() - wall, time.process_time() - own
        with TemporaryDirectory() as out:
            wall, own = time.perf_counter(), time.process_time()
            predict(student, files, Path(out))
            whole, whole_own = time.perf_counter() - wall, time.process_time() - own
        rates = f"bare {len(files) / bare:.2f}, predict {len(files) / whole:.2f} pictures a second"
        print(f"{rates}: {bare / whole:.2f}; by processor time {bare_own / whole_own:.2f}", flush=True)


if __name__ == "__main__":
    main()
