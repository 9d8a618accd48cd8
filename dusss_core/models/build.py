"""Networks from a study's settings, with seeded weights: every site and the coordinator build the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dusss_core.config import TrainingConfig
from dusss_core.errors import UserError
from dusss_core.files import read_tensors
from dusss_core.models.grounding import GroundingDecoder
from dusss_core.models.image_tower import ImageTower
from dusss_core.models.text_tower import TextTower
from dusss_core.models.unet import UNet
from dusss_core.models.vlm import VisionLanguageModel
from dusss_core.seeds import derive_seed


def build_student(config: TrainingConfig) -> UNet:
    """The student U-Net with the study's initial weights.

    Raises:
        UserError: public weights that are missing or do not fit.
    """
    settings = config.student
    with _initialisation(config, "segment"):
        student = UNet(config.image.channels, config.image.classes, settings.width, settings.norm)
    if settings.weights:
        _load_student_weights(student, settings.weights)
    return student


def build_vlm(config: TrainingConfig) -> VisionLanguageModel:
    """The vision-language model with the study's initial weights.

    Raises:
        UserError: unknown encoder, or pretrained weights that are missing or do not fit.
    """
    from dusss_core.text_encoder import TextEncoder, embedding_width

    settings = config.vlm
    with _initialisation(config, "pretrain"):
        image = ImageTower(
            settings.image_encoder,
            config.image.channels,
            config.image.size,
            settings.patch_stride,
            settings.dim,
        )
        if settings.weights:
            _load_public_weights(image.encoder, settings.weights)
        encoder = TextEncoder(settings.text) if settings.text.tuning != "frozen" else None
        text = TextTower(encoder.width if encoder else embedding_width(settings.text), settings.dim)
        grounding = GroundingDecoder(
            image.channels,
            image.strides,
            config.image.channels,
            settings.decoder_width,
            settings.dim,
            config.image.classes,
            settings.skips,
            settings.cross_attention,
        )
        return VisionLanguageModel(image, text, grounding, config.pretrain.temperature, encoder)


@contextmanager
def _initialisation(config: TrainingConfig, phase: str) -> Iterator[None]:
    """Torch's initialisers draw from the global generator: inside it is seeded by the study, outside untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "init", phase))
        yield


def _load_student_weights(student: UNet, path: str) -> None:
    tensors, _ = read_tensors(path)
    wanted = {name: tuple(value.shape) for name, value in student.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if found != wanted:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise UserError(
            f"student.weights: {path}: not the tensors of this student ({len(odd)} differ, such as '{odd[0]}')",
            "use a student of the same student.width, student.norm, image.channels and image.classes",
        )
    student.load_state_dict(tensors)


def _load_public_weights(encoder: torch.nn.Module, path: str) -> None:
    tensors, _ = read_tensors(path)
    own = encoder.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}
    if len(fitting) < 0.5 * len(own):
        raise UserError(
            f"vlm.weights: {path}: only {len(fitting)} of the encoder's {len(own)} tensors are in it",
            "use weights of the same timm model",
        )
    encoder.load_state_dict(fitting, strict=False)
