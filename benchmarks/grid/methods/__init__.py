"""The methods of the grid: one module each, found by its name.

A module has a function `run(trial) -> Trained`, which trains on `trial.sites` and goes on where it stopped when it is
called again. Those that are switches of this project's own method (`presets`) share one module; a method with another
network is a new file beside it, and MODULES names it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from dusss_core.errors import UserError

if TYPE_CHECKING:
    from benchmarks.grid.trial import Trained, Trial

MODULES = ("presets", "transfer")
"""Modules of this folder; each has METHODS, the names that it answers to, and `run`."""


def find_method(name: str) -> Callable[[Trial], Trained]:
    """What runs the method of that name.

    Raises:
        UserError: there is none.
    """
    known: list[str] = []
    for module_name in MODULES:
        module = import_module(f"benchmarks.grid.methods.{module_name}")
        if name in module.METHODS:
            return module.run
        known += module.METHODS
    raise UserError(f"--method {name}: not known", f"one of: {', '.join(known)}")
