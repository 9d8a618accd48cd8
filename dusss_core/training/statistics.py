"""Batch statistics of a model that came from the coordinator.

A BatchNorm layer's running mean and variance belong to the weights below it. The weights of a round's global model are
an average, which no site has run: the statistics that a site followed during its own training do not fit it. Where
normalisation layers stay at the site (FedBN, Li et al. 2021) they are estimated anew on some of its own training
pictures, as "precise" BatchNorm does after plain training (Wu and Johnson 2021). They stay at the site as before. Where
they are shared a site may send such ones in place of those that it followed (`batch_statistics: estimated`): training
sees other pictures than those that the model is for, moved and recoloured views, and often labelled ones alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dusss_core.build import build
from dusss_core.config import ImageConfig, TrainingConfig
from dusss_core.inference import evaluating, to_input
from dusss_core.models import VisionLanguageModel
from dusss_core.models.weights import load_tensors, local_tensors
from dusss_core.models.words import Words
from dusss_core.objectives import reads_sentences
from dusss_core.phases import Phase
from dusss_core.records import Split
from dusss_core.seeds import generator
from dusss_core.text.bank import TextBank

PICTURES = 64
"""Training pictures that the statistics are estimated on: each layer averages over all their pixels."""
_BATCH = 16


def estimate_statistics(
    config: TrainingConfig,
    phase: Phase,
    model: nn.Module,
    train: Split,
    text: TextBank | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Fit the running statistics of `model` to its weights, on plain training pictures.

    Args:
        train: the site's training split; of pretraining, records with text are used.
        text: features of its sentences, for pretraining and for a student that is given them.
    """
    usable = phase.usable(train).nonzero()[0]
    if len(usable) < 2 or not isinstance(train.images, np.ndarray) or not has_statistics(model):
        return
    order = torch.randperm(len(usable), generator=generator(config.seed, "statistics", phase)).numpy()
    chosen = usable[order[:PICTURES]]

    def show(positions: np.ndarray) -> None:
        x = to_input(torch.from_numpy(np.ascontiguousarray(train.images[positions])).to(device), config.image)
        if not phase.reads_sentences and (text is None or not reads_sentences(config)):
            model(x)
        elif phase.reads_sentences and _in_image_tower_alone(model):
            model.encode_image(x)
        else:
            tokens, mask = (part.to(device) for part in text.features(torch.from_numpy(train.sentence[positions])))
            model(x, tokens, mask) if phase.reads_sentences else model(x, Words(tokens, mask))

    _estimate(model, show, np.array_split(chosen, max(1, len(chosen) // _BATCH)))


def with_own_statistics(
    config: TrainingConfig,
    phase: Phase,
    tensors: dict[str, Tensor],
    train: Split,
    text: TextBank | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """`tensors` of a whole model, global weights and local layers, with statistics that fit them."""
    if not config.local_norm:
        return tensors
    model = build(config, phase).to(device)
    load_tensors(model, tensors)
    estimate_statistics(config, phase, model, train, text, device)
    return {**tensors, **local_tensors(model, local_norm=True)}


def has_statistics(model: nn.Module) -> bool:
    """Whether a layer of `model` has running statistics."""
    return any(isinstance(layer, _BatchNorm) and layer.track_running_stats for layer in model.modules())


def fit_statistics(model: nn.Module, images: np.ndarray, image: ImageConfig, device: str | torch.device) -> None:
    """Fit the running statistics of a network that sees pictures alone.

    Args:
        images: N x channels x size x size, uint8.
    """

    def show(positions: np.ndarray) -> None:
        model(to_input(torch.from_numpy(np.ascontiguousarray(images[positions])).to(device), image))

    _estimate(model, show, np.array_split(np.arange(len(images)), max(1, len(images) // _BATCH)))


def _in_image_tower_alone(model: VisionLanguageModel) -> bool:
    """Whether the rest of the model, most of its work, has no statistics."""
    return all(name.startswith("image.") for name, layer in model.named_modules() if isinstance(layer, _BatchNorm))


@torch.no_grad()
def _estimate(model: nn.Module, show: Callable[[np.ndarray], None], batches: list[np.ndarray]) -> None:
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    momenta = [layer.momentum for layer in layers]
    with evaluating(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over batches
            layer.train()
        for positions in batches:
            show(positions)
    for layer, momentum, buffers in zip(layers, momenta, before, strict=True):
        layer.momentum = momentum
        if not layer.num_batches_tracked:  # the pictures do not pass it
            for name, buffer in layer.named_buffers():
                buffer.copy_(buffers[name])
