"""What is measured on a GPU only, rehearsed with a stand-in for torch.cuda: names, units, and what is waited for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import timing
from benchmarks.gpu.variants import ON_CUDA, Variant

GPU = SimpleNamespace(type="cuda")
FORM = Variant("bf16", amp=True, tf32=True, benchmark=True)


class Work:
    """Allocates, and notes under which switches it runs."""

    def __init__(self, cuda):
        self.cuda = cuda
        cuda.allocated += 100

    def run(self, n: int) -> None:
        self.cuda.calls.append(("run", n, torch.backends.cudnn.benchmark))
        self.cuda.peak = max(self.cuda.peak, self.cuda.allocated + 50)


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda, as far as it is asked for something."""
    found = SimpleNamespace(calls=[], allocated=1000, peak=5000, percents=iter([20.0, 60.0]))

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self):
            found.calls.append("record")

        def elapsed_time(self, other) -> float:
            return 1500.0

    def reset(device):
        found.peak = found.allocated

    stubs = {
        "Event": Event,
        "synchronize": lambda device: found.calls.append("synchronize"),
        "memory_allocated": lambda device: found.allocated,
        "max_memory_allocated": lambda device: found.peak,
        "reset_peak_memory_stats": reset,
        "get_device_properties": lambda device: SimpleNamespace(name="GPU", total_memory=80_000_000_000),
        "utilization": lambda device: next(found.percents),
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    return found


def test_time_on_a_gpu_lies_between_two_events_of_work_that_is_over(cuda):
    seconds, cpu_seconds = timing.timed(Work(cuda), 3, FORM, GPU)
    assert seconds == 1.5 and cpu_seconds >= 0
    assert cuda.calls == ["synchronize", "record", ("run", 3, True), "record", "synchronize"]
    assert not torch.backends.cudnn.benchmark


def test_memory_is_what_a_form_adds_at_its_peak(cuda):
    _, peak = timing.warmed(lambda: Work(cuda), 2, FORM, GPU)
    assert peak == 150


def test_the_driver_is_asked_while_a_round_runs_and_may_fall_silent(cuda):
    with timing.utilisation(GPU, every_s=0.01) as percents:
        while len(percents) < 2:
            pass
    assert percents == [20.0, 60.0]
    with timing.utilisation(GPU, every_s=0.001) as percents:  # the stand-in has no more
        pass
    assert percents == []


def test_the_machine_is_described_without_its_name(cuda):
    found = timing.machine(GPU)
    assert set(found) == {"processor", "torch", "python", "gpu", "gpu_memory_gb", "cuda", "cudnn"}
    assert found["gpu"] == "GPU" and found["gpu_memory_gb"] == 80.0


def test_the_profiler_of_a_gpu_is_read(cuda, monkeypatch):
    kernel = lambda start, end, kind: SimpleNamespace(  # noqa: E731
        device_type=kind, time_range=SimpleNamespace(start=start, end=end)
    )
    from torch.autograd import DeviceType

    class Profile:
        def __init__(self, activities):
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self):
            return self

        def __exit__(self, *error):
            assert cuda.calls[-1] == "synchronize"

        def events(self):
            gpu = [kernel(0, 40, DeviceType.CUDA), kernel(60, 100, DeviceType.CUDA)]
            return [*gpu, kernel(0, 1000, DeviceType.CPU)]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    assert timing.busy_share(Work(cuda), 5, FORM, GPU) == pytest.approx(0.8)


def test_the_first_form_of_a_gpu_is_what_the_others_are_compared_with():
    assert ON_CUDA[0].plain and not ON_CUDA[0].tf32 and not ON_CUDA[0].amp
    assert len({form.name for form in ON_CUDA}) == len(ON_CUDA)
