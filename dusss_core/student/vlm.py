"""A finished vision-language model as a file beside the student's, for masks that a sentence guides (Eq. 10).

    student.safetensors        the student
    student.vlm.safetensors    its vision-language model: `__metadata__` has AboutVLM as JSON under "feddusss.vlm"

Never pickle. A frozen text encoder is no part of it: it is public, and is found as the study names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from dusss_core.config import ImageConfig, Strict, TextConfig, TrainingConfig, VLMConfig
from dusss_core.config.base import STUDY_NAME
from dusss_core.devices import resolve_device
from dusss_core.errors import UserError
from dusss_core.files import digest_of_tensors, read_tensors, write_tensors
from dusss_core.records import Split
from dusss_core.student.about import Layers
from dusss_core.student.file import PERSONAL, VLM, check_fit, checked_header

if TYPE_CHECKING:
    from torch import Tensor

KEY = "feddusss.vlm"
_OF_TRAINING = "pretraining."
"""What step 1 trains beside the model and masks do not need."""


class AboutVLM(Strict):
    """All that it takes to use a vision-language model, but for its weights and a frozen text encoder."""

    format: Literal[1] = 1
    """Of this header."""
    study: str = Field(pattern=STUDY_NAME)
    """Name of the study that trained it."""
    study_digest: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the study's settings; that of its student is the same."""
    round: int = Field(0, ge=0)
    """The round of pretraining that made it."""
    image: ImageConfig
    """How a picture becomes its input, and its classes."""
    vlm: VLMConfig
    """What it is built of."""
    flip: bool = True
    """Whether it was trained on mirrored pictures (`pretrain.flip`), so that `vlm.mirror` may use them."""
    layers: Layers
    """Whose normalisation layers it has: shared, or site."""
    site: str | None = Field(None, max_length=64)
    """The site whose layers these are."""
    encoder: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """Identity of the frozen text encoder (`dusss_core.text.encoder.Encoder`); empty: not known, or none."""
    tensors: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the weights."""

    def config(self) -> TrainingConfig:
        """Settings that build it, and make its masks."""
        return TrainingConfig(study=self.study, image=self.image, vlm=self.vlm, pretrain={"flip": self.flip})


def vlm_path(student: Path | str) -> Path:
    """Where a student's vision-language model lies: beside it. All students of a study at a site have the same."""
    student = Path(student)
    return student.with_name(f"{student.stem.removesuffix(PERSONAL)}{VLM}{student.suffix}")


def write_vlm(path: Path, config: TrainingConfig, tensors: Mapping[str, Tensor], layers: Layers, **more) -> None:
    """Write the model of a study's step 1 atomically.

    Args:
        config: the study's settings.
        tensors: the whole model's, with the normalisation layers that `layers` says.
        more: further fields of `AboutVLM`.

    Raises:
        UserError: disk full or no permission.
    """
    tensors = {name: value for name, value in tensors.items() if not name.startswith(_OF_TRAINING)}
    about = AboutVLM(
        study=config.study,
        image=config.image,
        # public weights are where it started from, and the file has its own
        vlm=config.vlm.model_copy(update={"weights": None}),
        flip=config.pretrain.flip,
        layers=layers,
        encoder=_identity(config.vlm.text),
        tensors=digest_of_tensors(tensors),
        **more,
    )
    write_tensors(path, tensors, {KEY: about.model_dump_json(), "format": "pt"})


def read_vlm(path: Path | str) -> tuple[AboutVLM, dict[str, Tensor]]:
    """A vision-language model's file, checked: its header, and its weights against the digest there.

    Raises:
        UserError: missing, another file, of another release, or damaged.
    """
    tensors, metadata = read_tensors(Path(path))
    if KEY not in metadata:
        raise UserError(
            f"{path}: not a vision-language model's file: it does not say how it is used",
            "use NAME.vlm.safetensors, which the run wrote beside the student NAME.safetensors",
        )
    return checked_header(AboutVLM, metadata[KEY], tensors, Path(path)), tensors


class TextGuide:
    """A finished vision-language model at work: pictures and sentences in, mask logits out.

    Args:
        about, tensors: as `read_vlm` gives them.
        encoder: folder of the text encoder, in place of where the study found it.

    Raises:
        UserError: the weights do not fit the model; the text encoder is not here, or is another one.
    """

    def __init__(
        self, about: AboutVLM, tensors: dict[str, Tensor], device: str = "auto", source: str = "", encoder: str = ""
    ):
        from dusss_core.build import build_vlm
        from dusss_core.models.weights import load_tensors, shared_tensors

        if encoder:
            text = about.vlm.text.model_copy(update={"encoder": encoder})
            about = about.model_copy(update={"vlm": about.vlm.model_copy(update={"text": text})})
        self.about, self.source = about, source
        self._config, self._device = about.config(), resolve_device(device)
        if about.encoder and _identity(about.vlm.text, told=True) != about.encoder:
            raise UserError(
                f"{about.vlm.text.encoder}: not the text encoder that {source or 'the model'} was trained with",
                "use the same release of it; --encoder names its folder",
            )
        model = build_vlm(self._config).eval()
        check_fit(source or "the vision-language model", shared_tensors(model, local_norm=False, copies=False), tensors)
        load_tensors(model, tensors)
        self._model = model.to(self._device)
        self._bank, self._known = None, ()

    def learn(self, sentences: Sequence[str]) -> None:
        """Encode these sentences at once; `logits` encodes others when they come."""
        from dusss_core.text.bank import build_text_bank

        self._known = tuple(sorted(set(sentences)))
        own = self._model.text_encoder
        text = self.about.vlm.text
        self._bank = build_text_bank(self._known, text, None, self._device, encoder=own, augmented=False)

    def logits(self, images: np.ndarray | Sequence[np.ndarray], sentences: Sequence[str]) -> list[np.ndarray]:
        """Mask logits of each picture and its sentence.

        Args:
            images: N x channels x size x size uint8, or with `image.mode: tile` a list of whole pictures.
            sentences: of each picture; none is empty.

        Returns:
            outputs x H x W each, float16.
        """
        from dusss_core.training.evaluation import ground_split

        if not set(sentences) <= set(self._known):
            self.learn([*self._known, *sentences])
        split = split_of(images, sentences, self._known)
        return list(ground_split(self._config, self._model, split, self._bank, self._device))


def load_vlm(path: Path | str, device: str = "auto", encoder: str = "") -> TextGuide:
    """The vision-language model in a file."""
    about, tensors = read_vlm(path)
    return TextGuide(about, tensors, device, str(path), encoder)


def split_of(images, sentences: Sequence[str], known: Sequence[str]) -> Split:
    """Pictures with a sentence each out of `known`, without masks."""
    number = {sentence: i for i, sentence in enumerate(known)}
    nothing = np.zeros(len(sentences), dtype=bool)
    return Split(
        images=images,
        masks=[],
        labelled=nothing,
        masked=nothing,
        sentence=np.array([number[sentence] for sentence in sentences], dtype=np.int64),
        sentences=tuple(known),
        ids=tuple(map(str, range(len(sentences)))),
    )


def _identity(text: TextConfig, told: bool = False) -> str:
    """SHA-256 that names a frozen text encoder; '' where one is trained along, or (unless `told`) is not here."""
    if text.tuning != "frozen":
        return ""
    try:
        return _located(text.encoder)
    except UserError:
        if told:
            raise
        return ""


@lru_cache(maxsize=4)
def _located(encoder: str) -> str:
    from dusss_core.text.encoder import locate

    return locate(encoder).digest
