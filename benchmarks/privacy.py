"""What a private training step of the student costs: time and peak memory, against a plain step on the same records.

    python benchmarks/privacy.py                         batch 8, 128 x 128, width 32: seconds to minutes
    python benchmarks/privacy.py --width 64 --size 224   the paper's student

Both steps train on the same drawn records, half of them labelled, with teacher and text-guided masks. They are timed in
turn in one process, so that what else the machine does meets both; memory is that of one step in a process of its own
(on a GPU: of its allocator). Exit code 1 if the median private step takes more than `--target` times the plain one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from feddusss import cli

TARGET = 1.5
KINDS = ("plain", "private")


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="records per step (8)")
    parser.add_argument("--size", type=int, default=128, help="height and width of the pictures (128)")
    parser.add_argument("--width", type=int, default=32, help="channels of the student's first level (32)")
    parser.add_argument("--views", type=int, default=1, help="augmented views of a record in a private step (1)")
    parser.add_argument("--steps", type=int, default=5, help="steps of either kind that are timed (5)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU where there is one")
    parser.add_argument("--target", type=float, default=TARGET, help=f"largest ratio that passes ({TARGET})")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_measure, parser, argv)


def _measure(arguments: argparse.Namespace) -> int:
    import torch

    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {kind: pool.apply(_peak_memory, (arguments, kind)) for kind in KINDS}
    steps = {kind: _step_of(arguments, kind) for kind in KINDS}
    seconds = {kind: [] for kind in KINDS}
    for number in range(arguments.steps + 1):
        for kind in KINDS:
            started = time.perf_counter()
            steps[kind]()
            if number:  # the first warms up
                seconds[kind].append(time.perf_counter() - started)
    median = {kind: statistics.median(values) for kind, values in seconds.items()}
    noise = _noise_seconds(arguments)

    print(
        f"{arguments.device}, {torch.get_num_threads()} threads, batch {arguments.batch}, "
        f"{arguments.size} x {arguments.size}, width {arguments.width}, views {arguments.views}"
    )
    print(f"{'':12}{'plain':>10}{'private':>10}{'ratio':>10}")
    for title, values, unit in (("s per step", median, ".3f"), ("MiB at most", memory, ".0f")):
        ratio = values["private"] / max(values["plain"], 1e-9)
        print(f"{title:12}{values['plain']:>10{unit}}{values['private']:>10{unit}}{ratio:>10.2f}")
    print(f"of a private step, {noise:.3f} s are noise")
    return int(median["private"] > arguments.target * median["plain"])


def _step_of(arguments: argparse.Namespace, kind: str):
    """A function that makes one step, gradients to teacher."""
    import torch

    trainer = _trainer(arguments, kind)
    labelled, unlabelled = trainer.labelled, trainer.unlabelled
    if kind == "private":
        batch = trainer.units(torch.arange(arguments.batch).numpy())
    else:
        batch = (labelled, unlabelled)
    draw = torch.Generator().manual_seed(0)
    trainer.model.train()

    def step() -> None:
        trainer.set_gradients(batch, draw, 0.5, [])
        trainer.optimizer.step()
        trainer.after_step(0.5)
        if arguments.device.startswith("cuda"):
            torch.cuda.synchronize()

    return step


def _trainer(arguments: argparse.Namespace, kind: str):
    import numpy as np

    from dusss_core.config import TrainingConfig
    from dusss_core.privacy.segment import PrivateSegmenter
    from dusss_core.records import Split
    from dusss_core.training import Segmenter

    config = TrainingConfig.model_validate(
        {
            "image": {"size": arguments.size},
            "student": {"width": arguments.width, "norm": "group"},
            "privacy": {"views": arguments.views},
        }
    )
    n, size = arguments.batch, arguments.size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (n, 1, size, size), dtype=np.uint8)
    masks = (images[:, 0] > 128).astype(np.uint8)
    every = np.ones(n, bool)
    split = Split(
        images, masks, np.arange(n) < n // 2, every, np.zeros(n, np.int64), ("a",), tuple(str(i) for i in range(n))
    )
    logits = rng.normal(size=(n, 1, size, size)).astype(np.float16)
    common = {"text_logits": logits, "device": arguments.device}
    if kind == "private":
        return PrivateSegmenter(config, "site", split, split, records=n, **common)
    return Segmenter(config, "site", split, split, **common)


def _peak_memory(arguments: argparse.Namespace, kind: str) -> float:
    """MiB that two steps need beyond the trainer; run in a process of its own."""
    import torch

    step = _step_of(arguments, kind)
    if arguments.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(), step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before, highest, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    step(), step()
    done.set()
    watcher.join()
    return (highest - before) / 2**20


def _resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _noise_seconds(arguments: argparse.Namespace) -> float:
    from dusss_core.privacy.randomness import Randomness

    parameters = list(_trainer(arguments, "private").model.parameters())
    randomness = Randomness()
    started = time.perf_counter()
    randomness.noise_like(parameters, 1.0)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
