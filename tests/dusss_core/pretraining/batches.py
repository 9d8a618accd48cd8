"""Tiny sites for the methods of step 1, and one batch of theirs."""

from __future__ import annotations

import typing
from typing import Any

import numpy as np
import torch

from dusss_core.config import PretrainingName, TrainingConfig
from dusss_core.phases import Phase
from dusss_core.pretraining import TABLE
from dusss_core.pretraining.method import Seen
from dusss_core.records import Split
from dusss_core.training import Pretrainer, initial_shared
from tests.dusss_core.conftest import make_config, make_split

METHODS = [name for name in TABLE if name in typing.get_args(PretrainingName)]
"""A name that the settings lack is a test's to find."""


def config_of(name: str, *, preset: str = "dusss", **changes: Any) -> TrainingConfig:
    """A tiny study of that method of step 1."""
    method = {"preset": preset, "pretraining": name, **changes.pop("method", {})}
    return make_config(method=method, **changes)


def trainer_of(name: str, bank: Any, train: Split | None = None, **changes: Any) -> Pretrainer:
    """A site in its first round."""
    config, train = config_of(name, **changes), train or make_split()
    trainer = Pretrainer(config, "a", train, train, bank)
    trainer.load_shared(initial_shared(config, Phase.PRETRAIN))
    return trainer


def look(trainer: Pretrainer, share_done: float = 0.5, seed: int = 1) -> Seen:
    """All twelve records, four of them labelled."""
    positions = np.arange(12)
    return trainer._look((positions[:4], positions[4:]), torch.Generator().manual_seed(seed), share_done)
