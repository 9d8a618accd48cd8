"""Networks from a study's settings, with seeded weights: every site and the coordinator build the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dusss_core.config import IMAGENET, TrainingConfig
from dusss_core.errors import UserError
from dusss_core.models.encoder_student import EncoderStudent
from dusss_core.models.grounding import GroundingDecoder
from dusss_core.models.image_tower import ImageTower
from dusss_core.models.public_weights import load_encoder_weights, load_student_weights
from dusss_core.models.small_unet import SmallUNet
from dusss_core.models.text_tower import TextTower
from dusss_core.models.unet import UNet
from dusss_core.models.vlm import VisionLanguageModel
from dusss_core.objectives import misfit, objective_of
from dusss_core.phases import Phase
from dusss_core.pretraining import pretraining_of
from dusss_core.seeds import derive_seed

Student = UNet | SmallUNet | EncoderStudent


def build(config: TrainingConfig, phase: Phase) -> Student | VisionLanguageModel:
    """The network that `phase` trains, with the study's initial weights.

    Raises:
        UserError: as `build_student` and `build_vlm`.
    """
    return build_vlm(config) if phase == Phase.PRETRAIN else build_student(config)


def build_student(config: TrainingConfig) -> Student:
    """The student with the study's initial weights, and with the decoders that the study's objective compares.

    Raises:
        UserError: unknown encoder, an objective that does not work on the network, or public weights that are missing
            or do not fit.
    """
    settings, image = config.student, config.image
    if reason := misfit(config):
        raise UserError(reason, "change one of the two")
    others = objective_of(config).builds(config)
    with _initialisation(config, Phase.SEGMENT):
        if settings.kind == "unet":
            student = UNet(image.channels, image.outputs, settings.width, settings.norm, others)
        elif settings.kind == "small_unet":
            student = SmallUNet(image.channels, image.outputs, settings.norm, others)
        else:
            student = EncoderStudent(
                settings.encoder, image.channels, image.outputs, image.size, settings.width, settings.norm
            )
    if settings.mask_bias is not None:
        _start_from_background(student, settings.mask_bias)
    if settings.weights == IMAGENET:
        load_encoder_weights(student.encoder, settings.encoder, IMAGENET, "student")
    elif settings.weights:
        load_student_weights(student, settings.weights)
    return student


def build_vlm(config: TrainingConfig) -> VisionLanguageModel:
    """The vision-language model with the study's initial weights.

    Raises:
        UserError: unknown encoder, or pretrained weights that are missing or do not fit.
    """
    from dusss_core.text.encoder import TextEncoder, embedding_width

    settings = config.vlm
    with _initialisation(config, Phase.PRETRAIN):
        image = ImageTower(
            settings.image_encoder,
            config.image.channels,
            config.image.size,
            settings.patch_stride,
            settings.dim,
            settings.cells,
            settings.cell_dim,
        )
        if settings.weights:
            load_encoder_weights(image.encoder, settings.image_encoder, settings.weights, "vlm")
        encoder = TextEncoder(settings.text) if settings.text.tuning != "frozen" else None
        width = encoder.width if encoder else embedding_width(settings.text)
        text = TextTower(width, settings.dim, settings.cells, settings.cell_dim, query=settings.text.pooling == "query")
        grounding = GroundingDecoder(
            image.channels,
            image.strides,
            config.image.channels,
            settings.decoder_width,
            settings.dim,
            config.image.outputs,
            settings.skips,
            settings.cross_attention,
            settings.mask_bias,
            settings.cell_dim if settings.cells else 0,
        )
        more = pretraining_of(config).modules(config)
        return VisionLanguageModel(image, text, grounding, config.pretrain.temperature, encoder, more)


@torch.no_grad()
def _start_from_background(student: Student, bias: float) -> None:
    """The heads of all decoders start from the logit `bias` for foreground, and from 0 for the background of several
    classes."""
    if isinstance(student, EncoderStudent):
        heads = [student.head.pixel]
    else:
        heads = [student.head, *(decoder.head for decoder in student.others)]
    for head in heads:
        head.bias.fill_(bias)
        if len(head.bias) > 1:
            head.bias[0] = 0.0


@contextmanager
def _initialisation(config: TrainingConfig, phase: Phase) -> Iterator[None]:
    """Torch's initialisers draw from the global generator: inside it is seeded by the study, outside untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "init", phase))
        yield
