"""A network's tensors by name: those that travel, those that stay at a site, and how they come in."""

from __future__ import annotations

from collections.abc import Set

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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
