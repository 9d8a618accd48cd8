"""Which tensors travel, what the first global model is, and whether a site can take part."""

from __future__ import annotations

from collections.abc import Set

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dusss_core.config import TrainingConfig
from dusss_core.models import build
from dusss_core.phases import Phase
from dusss_core.records import Split


def can_train(config: TrainingConfig, phase: Phase, train: Split) -> str | None:
    """None if a site with this training split can take part in `phase`, otherwise the reason why not."""
    if len(train) == 0:
        return "the site has no training pictures"
    if not phase.usable(train).any():
        return "the site has no sentences"
    if phase == Phase.SEGMENT and not train.labelled.any() and not config.method.semi_supervised:
        return "the site has no labelled pictures and the method uses no others"
    return None


def handed_on(config: TrainingConfig, phase: Phase, n_labelled: int) -> tuple[str, ...]:
    """Prefixes of the parameters that a site with so many labelled pictures hands on as they came.

    Without a mask that is the grounding decoder: contrast, and agreement with itself, move it where no mask holds it,
    and the average of all sites with it. Such a site does not count in the mean of these parameters: it would hold
    those of the others back.
    """
    decoder_has_masks = n_labelled or not config.method.grounding_supervision
    return () if phase != Phase.PRETRAIN or decoder_has_masks else ("grounding.",)


def initial_shared(config: TrainingConfig, phase: Phase) -> dict[str, Tensor]:
    """The first global model of a phase: seeded weights, those that travel."""
    return shared_tensors(build(config, phase), config.local_norm)


def shared_tensors(model: nn.Module, local_norm: bool) -> dict[str, Tensor]:
    """Copies of the trained tensors and buffers of `model`.

    Frozen parameters do not travel; with `local_norm` (FedBN) neither do normalisation layers.
    """
    return _copies(model, model.state_dict().keys() - _private_names(model, local_norm))


def local_tensors(model: nn.Module, local_norm: bool) -> dict[str, Tensor]:
    """Copies of the normalisation layers' tensors if they stay at the site, otherwise nothing."""
    return _copies(model, _norm_names(model)) if local_norm else {}


def load_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy `tensors` into the parameters and buffers of `model` that they name.

    Raises:
        KeyError: a name that the model does not have.
        RuntimeError: a shape that does not fit.
    """
    own = model.state_dict()
    for name, value in tensors.items():
        if own[name].shape != value.shape:
            raise RuntimeError(f"{name}: shape {tuple(value.shape)} does not fit {tuple(own[name].shape)}")
        own[name].copy_(value)


def _copies(model: nn.Module, names: Set[str]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items() if name in names}


def _private_names(model: nn.Module, local_norm: bool) -> set[str]:
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return frozen | (_norm_names(model) if local_norm else set())


def _norm_names(model: nn.Module) -> set[str]:
    kinds = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, kinds)
        for name in module.state_dict()
    }
