"""A student that is given a picture's sentence too: in its own network, or through the study's vision-language model.

The student of DuSSS sees the picture alone. With a sentence, the logits of its own mask and of the text-guided mask
(Eq. 10) are added, as the pseudo-labels of Eq. 15 are made. A network that takes sentences is given it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dusss_core.errors import UserError
from dusss_core.student.about import About
from dusss_core.student.vlm import TextGuide, load_vlm, split_of, vlm_path

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Pictures = np.ndarray | Sequence[np.ndarray]


class Ears(Protocol):
    """What a sentence does to a picture's logits."""

    digest: str
    """Names what it works with: a run that was cut off goes on only with the same."""

    def learn(self, sentences: Sequence[str]) -> None:
        """Encode these sentences at once."""

    def told(self, plain: Tensor, images: Pictures, sentences: Sequence[str]) -> Tensor:
        """Logits with the sentences.

        Args:
            plain: N x C x H x W, of the pictures alone.
            images: N prepared pictures, uint8.
            sentences: of each; '' leaves a picture's logits as they are.
        """


def ears_of(
    about: About, network: nn.Module, device: torch.device, source: str, vlm: Path | None = None, encoder: str = ""
) -> Ears:
    """What a student hears with.

    Args:
        source: the student's file.
        vlm: the file of the vision-language model; None: beside the student's.
        encoder: folder of the text encoder, in place of where the study found it.

    Raises:
        UserError: no vision-language model there, that of another study or site, or no text encoder.
    """
    if about.hears:
        return _OwnEars(about, network, device, encoder)
    path = vlm or vlm_path(source)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file: this student sees pictures alone, and a sentence reaches it through the "
            "vision-language model of its study, which is not here",
            "copy it from where the study ran, beside its student (NAME.vlm.safetensors; of a simulation "
            "'python -m server evaluate RUN' writes it), name it with --vlm, or predict without sentences",
        )
    guide = load_vlm(path, str(device), encoder)
    _check_pair(about, source, guide)
    return _Guided(guide)


class _Guided:
    """Logits of the student and of the text-guided mask, added."""

    def __init__(self, guide: TextGuide):
        self._guide = guide
        self.digest = guide.about.tensors
        self.learn = guide.learn

    def told(self, plain: Tensor, images: Pictures, sentences: Sequence[str]) -> Tensor:
        import torch

        places, some = _with_text(images, sentences)
        merged = plain.clone()
        for place, found in zip(places, self._guide.logits(some, [sentences[i] for i in places]), strict=True):
            # a study's figures are of logits in half precision
            merged[place] = plain[place].half().float() + torch.from_numpy(found).to(plain.device).float()
        return merged


class _OwnEars:
    """The student's own network takes the sentence."""

    def __init__(self, about: About, network: nn.Module, device: torch.device, encoder: str):
        text = about.text.model_copy(update={"encoder": encoder}) if encoder else about.text
        config = about.config()
        self._config = config.model_copy(update={"vlm": config.vlm.model_copy(update={"text": text})})
        self._network, self._device = network, device
        self._known: tuple[str, ...] = ()
        self._bank = None
        self.digest = "own"

    def learn(self, sentences: Sequence[str]) -> None:
        from dusss_core.text.bank import build_text_bank

        self._known = tuple(sorted(set(sentences)))
        self._bank = build_text_bank(self._known, self._config.vlm.text, None, self._device, augmented=False)

    def told(self, plain: Tensor, images: Pictures, sentences: Sequence[str]) -> Tensor:
        import torch

        from dusss_core.training import told_logits

        places, some = _with_text(images, sentences)
        own = [sentences[i] for i in places]
        if not set(own) <= set(self._known):
            self.learn([*self._known, *own])
        found = told_logits(self._config, self._network, split_of(some, own, self._known), self._bank, self._device)
        merged = plain.clone()
        for place, logits in zip(places, found, strict=True):
            merged[place] = torch.from_numpy(np.asarray(logits)).to(plain.device).float()
        return merged


def _with_text(images: Pictures, sentences: Sequence[str]) -> tuple[list[int], Pictures]:
    places = [i for i, sentence in enumerate(sentences) if sentence]
    return places, images[places] if isinstance(images, np.ndarray) else [images[i] for i in places]


def _check_pair(about: About, source: str, guide: TextGuide) -> None:
    """Refuse the model of another study, other pictures, or another site.

    Raises:
        UserError: with both.
    """
    other = guide.about
    if other.study_digest != about.study_digest or other.study != about.study:
        raise UserError(
            f"{guide.source}: of study {other.study} ({other.study_digest[:8]}), and {source} is of {about.study} "
            f"({about.study_digest[:8]})",
            "use the vision-language model that the run wrote beside this student",
        )
    if other.image != about.image or (other.site and about.site and other.site != about.site):
        raise UserError(
            f"{guide.source}: made for pictures of {other.site or 'other settings'}, and {source} for those of "
            f"{about.site or 'its own'}",
            "use the vision-language model that the run wrote beside this student",
        )
