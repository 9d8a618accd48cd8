"""Where the time of a federation's round goes: named functions are wrapped, and each second counts for the innermost.

Used by `federation_probe.py`, in a process of its own that may run another checkout's code, so it imports nothing of
the project but by name. A function that a checkout does not have is left out; a share without any is reported.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

SITE, COORDINATOR = "site", "coordinator"
TRAINING = "training"
"""The share that is no bookkeeping."""

_TRAINER = "dusss_core.training.trainer:PhaseTrainer"
_BENCH = ("client.work.workbench:Workbench", "client.workbench:Workbench")
_STATE = ("client.state.store:SiteState", "client.state:SiteState")
FUNCTIONS: Mapping[tuple[str, str], tuple[str, ...]] = {
    (SITE, TRAINING): (f"{_TRAINER}.train_round", f"{_TRAINER}.validate"),
    (SITE, "build"): tuple(f"{bench}.{name}" for bench in _BENCH for name in ("__init__", "split", "_build_trainer")),
    (SITE, "decode"): ("client.door.entrance:_tensors", "client.request:read_tensors"),
    (SITE, "load"): ("client.work.training:load_shared", "client.work:_load_shared"),
    (SITE, "state read"): (
        *(f"{state}.newest" for state in _STATE),
        f"{_TRAINER}.load_private",
    ),
    (SITE, "state write"): (*(f"{state}.save" for state in _STATE), f"{_TRAINER}.private"),
    (SITE, "wait for the disk"): ("client.door.exit:settle",),
    (SITE, "check"): ("client.work.training:_check_finite", "client.work:_check_finite"),
    (SITE, "copy"): (f"{_TRAINER}.shared",),
    (SITE, "pack"): ("feddusss.wire:pack",),
    (SITE, "audit"): (
        "client.door.audit:record",
        "client.door.exit:let_out",
        *(f"client.audit:{name}" for name in ("record", "incoming", "outgoing")),
    ),
    (COORDINATOR, "pack"): ("feddusss.wire:pack",),
    (COORDINATOR, "deliver"): ("server.simulation.inprocess:_rebuilt",),
    (COORDINATOR, "read"): ("server.rounds.replies:read_reply", "server.replies:read_reply"),
    (COORDINATOR, "spool"): ("server.rounds.spool:Spool.put",),
    (COORDINATOR, "screen"): ("server.rounds.collecting:Collector._screen", "server.collecting:Collector._screen"),
    (COORDINATOR, "aggregate"): (
        "server.rounds.aggregation:Aggregator.aggregate",
        "server.aggregation:Aggregator.aggregate",
    ),
    (COORDINATOR, "checkpoint"): (
        "server.runs.checkpoints:CheckpointStore.save_round",
        "server.checkpoints:CheckpointStore.save_round",
    ),
    (COORDINATOR, "metrics"): (
        "server.runs.outputs:Outputs.add",
        "server.runs.runfolder:RunFolder.add_metrics",
        "server.runfolder:RunFolder.add_metrics",
    ),
}
OTHER = "other"


class Shares:
    """Seconds of processor (of the thread that works) and of the clock, by side and name, each counted once."""

    def __init__(self) -> None:
        self.cpu: dict[tuple[str, str], float] = defaultdict(float)
        self.wall: dict[tuple[str, str], float] = defaultdict(float)
        self._thread = threading.local()

    def install(self) -> list[tuple[str, str]]:
        """Wrap what there is to wrap. Returns the shares of which nothing was found."""
        homes: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for key, names in FUNCTIONS.items():
            for name in names:
                homes[name].append(key)
        found = set()
        for name, keys in homes.items():
            wrapped = [self._wrap(*place, keys) for place in places(name)]  # all of them: subclasses have their own
            if any(wrapped):
                found.update(keys)
        return sorted(FUNCTIONS.keys() - found)

    @contextmanager
    def part(self, key: tuple[str, str]) -> Iterator[None]:
        """What runs in the block counts for `key`, but for inner parts."""
        stack = self._stack()
        self._count(stack)
        stack.append(key)
        try:
            yield
        finally:
            self._count(stack)
            stack.pop()

    def side(self, keys: list[tuple[str, str]]) -> tuple[str, str]:
        """Which of a function's shares is meant: pack is called by both sides."""
        if len(keys) == 1:
            return keys[0]
        stack = self._stack()
        now = stack[-1][0] if stack else COORDINATOR
        return next(key for key in keys if key[0] == now)

    def taken(self) -> dict[str, dict[str, float]]:
        """All so far: "SIDE: NAME" -> seconds."""
        stack = self._stack()
        self._count(stack)
        return {
            "cpu": {": ".join(key): seconds for key, seconds in self.cpu.items()},
            "wall": {": ".join(key): seconds for key, seconds in self.wall.items()},
        }

    def _wrap(self, owner: Any, name: str, keys: list[tuple[str, str]]) -> bool:
        original = vars(owner).get(name)
        if not callable(original):
            return False

        @wraps(original)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(self.side(keys)):
                return original(*arguments, **named)

        if isinstance(owner, type):
            setattr(owner, name, timed)
            return True
        for module in list(sys.modules.values()):  # also where it was imported by name
            for attribute, value in list(vars(module).items()) if hasattr(module, "__dict__") else ():
                if value is original:
                    setattr(module, attribute, timed)
        return True

    def _stack(self) -> list[tuple[str, str]]:
        if not hasattr(self._thread, "stack"):
            self._thread.stack, self._thread.last = [], (time.thread_time(), time.perf_counter())
        return self._thread.stack

    def _count(self, stack: list[tuple[str, str]]) -> None:
        now = time.thread_time(), time.perf_counter()
        before, self._thread.last = self._thread.last, now
        if stack:
            self.cpu[stack[-1]] += now[0] - before[0]
            self.wall[stack[-1]] += now[1] - before[1]


def is_here(module: str) -> bool:
    """Whether the checkout, which is the current folder, has the module: another's may be installed beside it."""
    path = Path(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def places(name: str) -> Iterator[tuple[Any, str]]:
    """Where a function lies: its module, or its class and the subclasses that have their own."""
    module_name, _, path = name.partition(":")
    if not is_here(module_name):
        return
    owner: Any = importlib.import_module(module_name)
    *classes, function = path.split(".")
    for inner in classes:
        owner = getattr(owner, inner, None)
    if owner is None:
        return
    yield owner, function
    yield from ((child, function) for child in (_below(owner) if isinstance(owner, type) else ()))


def _below(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)
