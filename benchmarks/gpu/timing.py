"""What a stretch of work takes: seconds, CPU-seconds, memory of the GPU, and the share of time in which it is busy."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu.variants import Variant, Work, policy
from benchmarks.measured import _processor as processor


def timed(work: Work, n: int, variant: Variant, device: torch.device) -> tuple[float, float]:
    """Seconds and CPU-seconds of `work.run(n)`; on a GPU between two events on its stream."""
    with policy(variant, device):
        if device.type == "cuda":
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            torch.cuda.synchronize(device)
            used = time.process_time()
            events[0].record()
            work.run(n)
            events[1].record()
            torch.cuda.synchronize(device)
            return events[0].elapsed_time(events[1]) / 1e3, time.process_time() - used
        used, began = time.process_time(), time.perf_counter()
        work.run(n)
        return time.perf_counter() - began, time.process_time() - used


def warmed(make: Callable[[], Work], n: int, variant: Variant, device: torch.device) -> tuple[Work, int | None]:
    """What `make` makes, after `n` steps; and the peak of GPU memory that it needed, in bytes (None on a CPU)."""
    cuda = device.type == "cuda"
    if cuda:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    work = make()
    with policy(variant, device):
        work.run(n)
    return work, torch.cuda.max_memory_allocated(device) - before if cuda else None


def busy_share(work: Work, n: int, variant: Variant, device: torch.device) -> float:
    """Share of the time of `n` steps in which a kernel or copy runs on the GPU, by the profiler, from the first of them
    to the last. (On a CPU: of operators, for a rehearsal.)"""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    # the CPU's side is not recorded: that would slow down what feeds the GPU
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with policy(variant, device), profile(activities=[activity]) as recorded:
        work.run(n)
        if cuda:
            torch.cuda.synchronize(device)
    spans = [(e.time_range.start, e.time_range.end) for e in recorded.events() if e.device_type == kind]
    return covered_share(spans)


def covered_share(spans: Iterable[tuple[float, float]]) -> float:
    """Share of the time from the first start to the last end that lies in at least one span; 0 without spans."""
    covered, reached, first = 0.0, None, None
    for start, end in sorted(spans):
        if reached is None:
            first = reached = start
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered / (reached - first) if reached is not None and reached > first else 0.0


@contextmanager
def utilisation(device: torch.device, every_s: float = 0.2) -> Iterator[list[float]]:
    """A list that fills with percents of time in which the GPU works, as its driver says; empty where nobody does."""
    found: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            try:
                found.append(float(torch.cuda.utilization(device)))
            except Exception:  # no package for it, or a driver that does not say: training goes on
                return

    watcher = threading.Thread(target=watch, daemon=True)
    if device.type == "cuda":
        watcher.start()
    try:
        yield found
    finally:
        over.set()
        if device.type == "cuda":
            watcher.join()


def machine(device: torch.device) -> dict[str, Any]:
    """What was measured on; nothing that tells whose it is."""
    found = {"processor": processor(), "torch": torch.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found
