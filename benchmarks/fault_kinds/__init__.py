"""The faults of `benchmarks/faults.py`: each does something to the federation and says what was lost.

A fault raises NotSurvived (or AssertionError) if the study did not do what it must.
"""

from __future__ import annotations

from benchmarks.fault_kinds import disks, keys, network, processes, updates
from benchmarks.fault_kinds.table import ALL, Fault, Outcome

__all__ = ["FAULTS", "Fault", "Outcome"]

FAULTS: dict[str, Fault] = {
    one.name: one
    for kind in (processes, network, updates, disks, keys)
    for one in ALL
    if one.do.__module__ == kind.__name__
}
"""By name, in the order in which they are done."""
