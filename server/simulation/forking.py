"""Where worker processes come from: a process that has imported what they need, and done nothing else.

Each worker would spend seconds of a processor on imports alone. That process has started no thread of torch's and
touched no GPU, so what is forked from it is as good as new.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.study.config import StudyConfig

_NEEDED = (
    "client.answer",
    "dusss_core.training",
    "dusss_core.text.encoder",
    "sites.dataset",
    "timm",
    "transformers",
)


def warm_up(study: StudyConfig) -> None:
    """Begin with the imports where the study has workers, and return at once."""
    if study.simulation is not None and study.simulation.workers > 1 and _can_fork():
        from multiprocessing import forkserver

        context()
        forkserver.ensure_running()


def context() -> BaseContext:
    """What worker processes are made with."""
    if not _can_fork():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(_NEEDED))
    return found


def _can_fork() -> bool:
    return "forkserver" in multiprocessing.get_all_start_methods()
