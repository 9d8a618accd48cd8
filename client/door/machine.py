"""What a message may use of this machine: the device that the site's file names, and memory within the site's limits.

Memory is held by the operating system and by CUDA rather than by an estimate.

Main memory: on Linux, RLIMIT_DATA bounds what a process may allocate (private writable memory: the heap, and what torch
and numpy map). Code, files that are mapped to be read, such as packed pictures, and what CUDA reserves do not count,
which is why RLIMIT_AS would not do. An allocation beyond the bound fails and ends the round; where native code does not
look whether an allocation failed, it ends the process, and the supervisor starts another. Elsewhere (macOS) nothing can
be held: a site that has taken more than it allows declines from then on.

GPU memory: torch's allocator refuses beyond its share of the device. The CUDA context itself, some hundred megabytes,
is not counted.

Both hold for the whole process: one process works for one site.

Without a limit the machine's own memory can run out: `OutOfMemory` says which batch to try. A GPU that fails in the
middle of something takes the whole process with it: CUDA answers nothing more there, and only another process can go on
(`device_is_lost`).
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from client.declined import Declined
from dusss_core.devices import resolve_device
from sites.config import LimitsConfig

_GB = 1e9
_CONTROL_GROUP = Path("/sys/fs/cgroup")
_FULL = ("out of memory", "_STATUS_ALLOC_FAILED")
"""How torch says that there is no memory left, where no class of error does."""
_GONE = ("CUDA error:", "CUDA driver error", "device-side assert", "CUDNN_STATUS_EXECUTION_FAILED", "GPU is lost")
"""How torch and CUDA say that a device, or what a process had there, is gone."""
_lost_devices: list[str] = []


class OutOfMemory(MemoryError):
    """There is no memory left for what was tried.

    Args:
        on: cpu or gpu.
        setting: the study's setting that says how many pictures are worked on at a time.
        batch: its value.
        least: the smallest value that it can have.
    """

    def __init__(self, on: str, setting: str, batch: int, least: int):
        super().__init__(on, setting, batch)
        self.on, self._setting, self._batch, self._least = on, setting, batch, least

    def __str__(self) -> str:
        memory = {"cpu": "memory", "gpu": "GPU memory"}[self.on]
        half = self._batch // 2
        smaller = f"{half} may fit" if half >= self._least else "there is hardly a smaller one"
        return (
            f"this site has too little {memory} for {self._setting}: {self._batch}; {smaller}; the state before is kept"
        )


def raise_full(error: Exception, setting: str, batch: int, least: int = 1) -> None:
    """Say what was tried, if the error is that memory ran out.

    Raises:
        OutOfMemory: it is; one that says what was tried already as it is.
    """
    if isinstance(error, OutOfMemory):
        raise error
    if (on := exhausted(error)) is not None:
        raise OutOfMemory(on, setting, batch, least) from error


def exhausted(error: Exception) -> str | None:
    """Whose memory ran out, cpu or gpu; None if the error is another."""
    if isinstance(error, OutOfMemory):
        return error.on
    if type(error).__name__ == "OutOfMemoryError":
        return "gpu"
    text = str(error)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text or "can't allocate memory" in text:
        return "cpu"
    return "gpu" if isinstance(error, RuntimeError) and any(words in text for words in _FULL) else None


def loses_device(error: Exception) -> bool:
    """Whether the error says that this process can use its GPU no more. If so, `device_is_lost` from then on."""
    told = type(error).__name__ == "AcceleratorError" or any(words in str(error) for words in _GONE)
    if not isinstance(error, RuntimeError) or not told or exhausted(error) is not None:
        return False
    _lost_devices.append(type(error).__name__)
    return True


def device_is_lost() -> bool:
    """Whether this process has lost its GPU: it can do no more than answer, and end."""
    return bool(_lost_devices)


def free_memory(device: str, limits: LimitsConfig) -> float:
    """Bytes that this process can still have: on a GPU what is free there, else main memory, within a container's and
    the site's own limit; without end where the system does not say."""
    if device.startswith("cuda"):
        import torch

        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    room = [_container_room()]
    if limits.max_memory_gb is not None:
        taken = _status("VmRSS") if sys.platform == "linux" else _peak_gb() * _GB
        room.append(max(0.0, limits.max_memory_gb * _GB - taken))
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        room += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min(room)


def _container_room() -> float:
    """Bytes until the limit of the control group, as a container has one; without end where there is none."""
    try:
        most, used = (int((_CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (_CONTROL_GROUP / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf
    cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(0.0, most - used + cached)


def give_back() -> None:
    """Give freed memory back to the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def held(limits: LimitsConfig, device: str) -> Iterator[None]:
    """Hold the site's memory limits while the block runs.

    Args:
        device: as the site's file names it.

    Raises:
        Declined: the block asked for more, or the process already has more.
    """
    with _main_memory(limits.max_memory_gb), _gpu_memory(limits.max_gpu_memory_gb, device):
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            kind = exhausted(error)
            most = {"cpu": limits.max_memory_gb, "gpu": limits.max_gpu_memory_gb}.get(kind)
            if most is None:
                raise
            raise _too_much(most, "max_memory_gb" if kind == "cpu" else "max_gpu_memory_gb") from error


@contextmanager
def _main_memory(most: float | None) -> Iterator[None]:
    if most is None:
        yield
        return
    if sys.platform != "linux":
        if _peak_gb() > most:
            raise _too_much(most, "max_memory_gb")
        yield
        return
    room = int(most * _GB) - _status("VmRSS")
    if room <= 0:
        raise _too_much(most, "max_memory_gb")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    bound = _status("VmData") + room
    if before[1] != resource.RLIM_INFINITY:
        bound = min(bound, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (bound, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextmanager
def _gpu_memory(most: float | None, device: str) -> Iterator[None]:
    if most is not None and device == "auto":
        device = resolve_device(device)
    if most is None or not device.startswith("cuda"):
        yield
        return
    import torch

    named = torch.device(device).index
    index = torch.cuda.current_device() if named is None else named
    whole = torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, most * _GB / whole), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)


def _too_much(most: float, key: str) -> Declined:
    reason = f"this takes more memory than the {most:g} GB that this site allows (limits.{key})"
    return Declined(reason, exhausted=True)


def _status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _peak_gb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)
