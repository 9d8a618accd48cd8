"""Which tensors travel, what the first global model is, and whether a site can take part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from dusss_core.build import build, start_from_tower
from dusss_core.config import IMAGENET, VLM, TrainingConfig
from dusss_core.models.weights import Head, local_tensors, shared_tensors
from dusss_core.objectives import objective_of, reads_sentences
from dusss_core.phases import Phase
from dusss_core.records import Split


def can_train(config: TrainingConfig, phase: Phase, train: Split) -> str | None:
    """None if a site with this training split can take part in `phase`, otherwise the reason why not."""
    if len(train) == 0:
        return "the site has no training pictures"
    if not phase.usable(train).any():
        return "the site has no sentences"
    if phase == Phase.SEGMENT and reads_sentences(config) and not train.has_text.any():
        return f"the site has no sentences, and method.objective {config.method.objective} gives them to the student"
    if phase == Phase.SEGMENT and not train.labelled.any():
        return _without_labels(config, train)
    return None


def no_own_student(config: TrainingConfig, train: Split) -> str | None:
    """Why a site with this training split can have no student (or head) of its own; None if it can.

    Without a mask, of a person or from a sentence, it would learn from its own guesses, which nothing holds: the global
    student has the other sites for that.
    """
    guided = config.method.text_mask and train.has_text.any() and not handed_on(config, Phase.SEGMENT, 0)
    if train.labelled.any() or guided:
        return None
    kind = config.personal.kind
    return f"the site has neither labelled pictures nor text-guided masks, and personal: {kind} needs some"


def handed_on(config: TrainingConfig, phase: Phase, n_labelled: int) -> tuple[str, ...]:
    """Prefixes of the parameters that a site with so many labelled pictures, in step 1 with a sentence, hands on as
    they came.

    Without a mask that is the grounding decoder: contrast, and agreement with itself, move it where no mask holds it,
    and the average of all sites with it. Such a site does not count in the mean of these parameters: it would hold
    those of the others back. In segmentation the objective says what a site without labels hands on.
    """
    if phase == Phase.SEGMENT:
        return () if n_labelled else objective_of(config).alone(config) or ()
    decoder_has_masks = n_labelled or not config.method.grounding_supervision
    return () if decoder_has_masks else ("grounding.",)


class Start(NamedTuple):
    """What a phase starts from."""

    shared: dict[str, Tensor]
    """The first global model: what travels in every round."""
    layers: dict[str, Tensor]
    """What stays at the sites from then on, normalisation layers (FedBN) and heads (FedRep), where it is of public
    weights, which no site has. Else empty: each site draws the same from the study's seed."""


def start_of(config: TrainingConfig, phase: Phase, vlm: Mapping[str, Tensor] | None = None) -> Start:
    """The weights that a phase starts from: seeded ones, or public ones where the study names some.

    Args:
        vlm: the final model of step 1, for `student.weights: vlm`.
    """
    model = build(config, phase)
    if phase == Phase.SEGMENT and config.student.weights == VLM and vlm is not None:
        start_from_tower(model, vlm)
    head = own_head(config, phase)
    shared, layers = shared_tensors(model, config.local_norm, head), local_tensors(model, config.local_norm, head)
    return Start(shared, layers if _brings_layers(config, phase) else {})


def initial_shared(config: TrainingConfig, phase: Phase, vlm: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The first global model of a phase; arguments as `start_of`."""
    return start_of(config, phase, vlm).shared


def _brings_layers(config: TrainingConfig, phase: Phase) -> bool:
    weights = (config.vlm if phase == Phase.PRETRAIN else config.student).weights
    # those of an encoder hold normalisation layers, and no head
    return weights is not None and (config.local_norm or weights not in (IMAGENET, VLM))


def own_head(config: TrainingConfig, phase: Phase) -> Head:
    """What of the phase's network is each site's own, beside normalisation layers under FedBN."""
    return config.personal.own_head if phase == Phase.SEGMENT else "none"


def _without_labels(config: TrainingConfig, train: Split) -> str | None:
    objective = objective_of(config)
    teaches = {"all": True, "with_text": train.has_text.any(), "none": False}[objective.learns_from(config)]
    if not teaches:
        return "the site has no labelled pictures and the method uses no others"
    if objective.alone(config) is None:
        return f"the site has no labelled pictures, and method.objective {config.method.objective} needs some"
    return no_own_student(config, train) if config.personal.own_head != "none" else None
