"""A network's tensors by name: those that travel, those that stay at a site, and how they come in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Head = Literal["output", "decoder", "none"]
"""Part of a student that is a site's own (FedRep): the last layer of each decoder; the whole way up; nothing."""
_HEADS = {
    "output": re.compile(r"(unet\.|second\.)?(others\.\d+\.)?head\."),
    "decoder": re.compile(r"(unet\.|second\.)?(others\.\d+\.)?(head|up)\."),
}
"""Where it lies in every student (`dusss_core.models.decoders`, `encoder_student`; `early_fusion` holds a U-Net, and
beside the network there may be a `second` one)."""


def shared_tensors(
    model: nn.Module, local_norm: bool, own_head: Head = "none", *, copies: bool = True
) -> dict[str, Tensor]:
    """The trained tensors and buffers of `model`, on the CPU.

    Frozen parameters do not travel; with `local_norm` (FedBN) neither do normalisation layers, nor does `own_head`.

    Args:
        copies: False: where the model lies on the CPU, its own tensors, which the next step changes.
    """
    private = _frozen_names(model) | _own_names(model, local_norm, own_head)
    return on_cpu({name: value for name, value in model.state_dict().items() if name not in private}, copies)


def local_tensors(
    model: nn.Module, local_norm: bool, own_head: Head = "none", *, copies: bool = True
) -> dict[str, Tensor]:
    """The tensors of `model` that stay at the site: those of normalisation layers, of its own head, or none. `copies`
    as `shared_tensors`."""
    names = _own_names(model, local_norm, own_head)
    return on_cpu({name: value for name, value in model.state_dict().items() if name in names}, copies)


def head_names(model: nn.Module, head: Head) -> set[str]:
    """Names of the tensors of that part of a student, buffers among them."""
    return set() if head == "none" else {name for name in model.state_dict() if _HEADS[head].match(name)}


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


def on_cpu(tensors: Mapping[str, Tensor], copies: bool) -> dict[str, Tensor]:
    """`tensors` on the CPU; with `copies`, on memory of their own."""
    return {name: _copy(value) if copies else value.detach().cpu() for name, value in tensors.items()}


def _copy(value: Tensor) -> Tensor:
    there = value.detach()
    return there.clone() if there.device.type == "cpu" else there.cpu()


def _frozen_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def _own_names(model: nn.Module, local_norm: bool, own_head: Head) -> set[str]:
    return (_norm_names(model) if local_norm else set()) | head_names(model, own_head)


def _norm_names(model: nn.Module) -> set[str]:
    kinds = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, kinds)
        for name in module.state_dict()
    }
