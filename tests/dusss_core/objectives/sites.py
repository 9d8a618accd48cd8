"""Tiny sites for the methods of step 2: what to train, from which pictures, and by whom."""

from __future__ import annotations

import typing
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dusss_core.config import ObjectiveName, TrainingConfig
from dusss_core.objectives import TABLE, objective_of, reads_sentences
from dusss_core.phases import Phase
from dusss_core.records import Split
from dusss_core.training import Segmenter, initial_shared
from tests.dusss_core.conftest import FakeBank, make_config, make_split

METHODS: dict[str, dict[str, Any]] = {
    # a name that the settings lack is a test's to find
    **{name: {"objective": name} for name in TABLE if name in typing.get_args(ObjectiveName)},
    "mean_teacher": {"preset": "mean_teacher"},
    "supervised": {"preset": "supervised"},
}
"""Name -> the study's `method`: every objective, and what the switches of `dusss` make of it."""

SURE = {"mask_bias": -4.0}
"""A student that calls nearly every pixel background from the start, with a probability of 0.98."""
STUDENTS: dict[str, dict[str, Any]] = {
    # they learn from pixels of which the student is sure, which after a few steps it is of none
    "fixmatch": SURE,
    "unimatch": SURE,
}
"""Name -> what the method needs of the study's `student` to hear anything of the few pictures here."""


def config_of(
    name: str, *, network: str = "unet", norm: str = "batch", classes: int = 1, **segment: Any
) -> TrainingConfig:
    """A tiny study of that method; where it does not work on `network`, on one that it does work on."""
    method = METHODS[name]
    kind = network_for(method, network)
    student = {**STUDENTS.get(name, {}), **({"encoder": "test_resnet"} if kind == "encoder" else {"network": kind})}
    values = {"rounds": 2, "batch": 8, "optimizer": {"lr": 1e-2}, **segment}
    return make_config(
        method=method,
        image={"size": 32, "classes": classes},
        student={"width": 4, "norm": norm, **student},
        segment=values,
    )


def network_for(method: dict[str, Any], network: str = "unet") -> str:
    """`network` if that method works on it, else the first that it works on."""
    kinds = objective_of(make_config(method=method)).networks
    return network if network in kinds else min(kinds)


def site(config: TrainingConfig, train: Split, shared: dict[str, torch.Tensor] | None = None) -> Segmenter:
    """A site in its first round, as `newcomer`."""
    trainer = newcomer(config, train)
    trainer.load_shared(shared or initial_shared(config, Phase.SEGMENT))
    return trainer


def newcomer(config: TrainingConfig, train: Split) -> Segmenter:
    """A site that no student has come to in this process; text-guided masks are the true ones, blurred, where the
    method takes any and pictures have sentences."""
    logits = (4 * (train.masks[:, None] > 0).astype(np.float16) - 2).repeat(config.image.outputs, 1)
    guided = config.method.text_mask and train.has_text.any()
    text = FakeBank() if reads_sentences(config) else None
    return Segmenter(config, "a", train, train, text_logits=logits if guided else None, text=text)


def trained(config: TrainingConfig, train: Split) -> dict[str, torch.Tensor]:
    """What a site hands on after all rounds."""
    trainer = site(config, train)
    for number in range(1, config.segment.rounds + 1):
        trainer.train_round(number)
    return trainer.shared()


def pictures(n: int = 12, labelled: int = 4, classes: int = 1) -> Split:
    """A site's training pictures."""
    split = make_split(n=n, labelled=labelled)
    if classes == 1:
        return split
    return replace(split, masks=split.masks * (1 + split.sentence[:, None, None] % classes).astype(np.uint8))


def with_other_unlabelled_pictures(split: Split) -> Split:
    """The same site with other pictures, where there is no mask."""
    images = np.where(split.labelled[:, None, None, None], split.images, 255 - split.images)
    return replace(split, images=images)


def without_sentences(split: Split) -> Split:
    """The same site, where nobody wrote a report."""
    return replace(split, sentence=np.full_like(split.sentence, -1))


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that are not the same to the last bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def loss_of_labelled(name: str) -> float:
    """Of a batch of labelled pictures alone, halfway through the phase."""
    trainer = site(config_of(name), pictures())
    labelled, _, none = parts(trainer)
    return trainer.losses((labelled, none), draw(), 0.5)[0].item()


def parts(trainer: Segmenter) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of a site's labelled and other pictures, and none."""
    return trainer.labelled, trainer.unlabelled, np.array([], dtype=np.int64)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
