"""Networks from a study's settings, with seeded weights: every site and the coordinator build the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import get_args

import torch
from torch import Tensor

from dusss_core.config import IMAGENET, TEXT_NETWORKS, VLM, TrainingConfig
from dusss_core.errors import UserError
from dusss_core.models.decoders import DecoderKind
from dusss_core.models.early_fusion import EarlyFusion
from dusss_core.models.encoder_student import EncoderStudent
from dusss_core.models.grounding import GroundingDecoder
from dusss_core.models.image_tower import ImageTower
from dusss_core.models.lvit import LViT
from dusss_core.models.pixel_heads import PixelHeads
from dusss_core.models.public_weights import load_encoder_weights, load_student_weights
from dusss_core.models.small_unet import SmallUNet
from dusss_core.models.text_tower import TextTower
from dusss_core.models.unet import UNet
from dusss_core.models.vilt import ViLT
from dusss_core.models.vlm import VisionLanguageModel
from dusss_core.objectives import misfit, objective_of
from dusss_core.phases import Phase
from dusss_core.pretraining import pretraining_of
from dusss_core.seeds import derive_seed

Student = UNet | SmallUNet | EncoderStudent | EarlyFusion | LViT | ViLT


def build(config: TrainingConfig, phase: Phase) -> Student | VisionLanguageModel:
    """The network that `phase` trains, with the study's initial weights.

    Raises:
        UserError: as `build_student` and `build_vlm`.
    """
    return build_vlm(config) if phase == Phase.PRETRAIN else build_student(config)


def build_student(config: TrainingConfig) -> Student:
    """The student with the study's initial weights, and with what the study's objective builds beside it.

    The network itself is built first, so that it starts from the same weights whatever is built beside it; then its
    further decoders (`others`), then `pixel_heads`, then `second`, a copy of the network alone. All of it is the
    student's: it is trained, travels and is averaged. `forward` is the network's own.

    With `student.weights: vlm` that is before step 1: `start_from_tower` gives it the tower that has been trained.

    Raises:
        UserError: unknown encoder, an objective that does not work on the network, or public weights that are missing
            or do not fit.
    """
    settings = config.student
    if reason := misfit(config):
        raise UserError(reason, "change one of the two")
    added = objective_of(config).builds(config)
    with _initialisation(config, Phase.SEGMENT):
        student = _network(config, [kind for kind in added if kind in get_args(DecoderKind)])
        if "pixel_heads" in added:
            foreground = config.image.classes
            student.pixel_heads = PixelHeads(student.feature_width, foreground, settings.norm)
        if "copy" in added:
            student.second = _network(config)
    networks = [student, student.second] if "copy" in added else [student]
    if settings.mask_bias is not None:
        for network in networks:
            _start_from_background(network, settings.mask_bias)
    if settings.weights in (IMAGENET, VLM):
        named = "vlm" if settings.weights == VLM else "student"
        if public := getattr(config, named).weights:
            for network in networks:
                load_encoder_weights(network.encoder, settings.encoder, public, named)
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
    gradient = 1.0 if settings.cells_read is None else settings.cells_read
    watching = config.pretrain.uncertainty.weight_ambiguity > 0
    with _initialisation(config, Phase.PRETRAIN):
        image = ImageTower(
            settings.image_encoder,
            config.image.channels,
            config.image.size,
            settings.patch_stride,
            settings.dim,
            settings.cells,
            settings.cell_dim,
            gradient=gradient,
            all_levels=settings.cells_read is not None,
            watching=watching,
        )
        if settings.weights:
            load_encoder_weights(image.encoder, settings.image_encoder, settings.weights, "vlm")
        encoder = TextEncoder(settings.text) if settings.text.tuning != "frozen" else None
        width = encoder.width if encoder else embedding_width(settings.text)
        text = TextTower(
            width,
            settings.dim,
            settings.cells,
            settings.cell_dim,
            query=settings.text.pooling == "query",
            gradient=gradient,
            watching=watching,
        )
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
            settings.cell_dim if settings.cells and settings.cells_read is None else 0,
        )
        more = pretraining_of(config).modules(config, image, width)
        return VisionLanguageModel(image, text, grounding, config.pretrain.temperature, encoder, more)


def start_from_tower(student: Student, vlm: Mapping[str, Tensor]) -> None:
    """Give the student's encoder, and its copy's, the weights and statistics of the image tower in `vlm`, a model of
    step 1.

    Raises:
        UserError: the tower is another network.
    """
    prefix = "image.encoder."
    tower = {name.removeprefix(prefix): value for name, value in vlm.items() if name.startswith(prefix)}
    own = student.encoder.state_dict()
    odd = sorted(name for name, value in tower.items() if name not in own or own[name].shape != value.shape)
    if odd or not tower:
        raise UserError(
            f"student.weights: vlm: the image tower is no part of the student's encoder ({len(odd)} tensors differ)",
            "set student.encoder to the network of vlm.image_encoder",
        )
    for network in (student, getattr(student, "second", None)):
        if network is not None:
            network.encoder.load_state_dict(tower, strict=False)


def _network(config: TrainingConfig, others: Sequence[DecoderKind] = ()) -> Student:
    settings, image = config.student, config.image
    if settings.kind == "unet":
        return UNet(image.channels, image.outputs, settings.width, settings.norm, others)
    if settings.kind == "small_unet":
        return SmallUNet(image.channels, image.outputs, settings.norm, others)
    if settings.kind in TEXT_NETWORKS:
        return _with_text(config)
    shape = (image.channels, image.outputs, image.size, settings.width, settings.norm, settings.hidden)
    return EncoderStudent(settings.encoder, *shape)


def _with_text(config: TrainingConfig) -> EarlyFusion | LViT | ViLT:
    """A student that can be given a sentence."""
    from dusss_core.text.encoder import embedding_width

    settings, image, text = config.student, config.image, config.vlm.text
    common = (image.channels, image.outputs, settings.width, settings.norm, image.size, embedding_width(text))
    if settings.kind == "early_fusion":
        return EarlyFusion(*common)
    if settings.kind == "lvit":
        return LViT(*common, tokens=settings.text_tokens)
    return ViLT(*common, words=text.max_tokens, layers=settings.layers, patch=settings.patch)


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
