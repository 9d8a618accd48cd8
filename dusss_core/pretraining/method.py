"""What a method of step 1 is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dusss_core.config import PretrainConfig, TrainingConfig
from dusss_core.losses.contrastive import same_sentence
from dusss_core.losses.similarity import Embedding
from dusss_core.losses.text_guided import masked_pool, text_guided_loss
from dusss_core.models.grounding import Grounding
from dusss_core.models.image_tower import ImageFeatures, ImageTower
from dusss_core.models.text_tower import TextFeatures
from dusss_core.models.vlm import VisionLanguageModel


class Sentences(NamedTuple):
    """What the model makes of the K sentences of a site, each once."""

    text: Embedding
    identity: Tensor
    """K int64, as that of the records."""
    log_count: Tensor
    """K, log of the number of training records that have the sentence."""


class Shown(NamedTuple):
    """B records as the model is shown them, and what it makes of them."""

    picture: Tensor
    """B x C x H x W, the weak view as the network takes it."""
    image: ImageFeatures
    """Of the weak view; the last level holds the patches."""
    text: TextFeatures
    """Of the sentence, mirrored where the picture is."""
    tokens: Tensor
    """B x L x E, the sentence's token features as they come from the text bank; `text.mask` says which are real."""
    sentence: Tensor
    """B int64, on the CPU: the record's sentence, by its number at the site."""
    flipped: Tensor
    """B bool, on the CPU: picture and sentence are mirrored."""
    draw: torch.Generator
    """Of the round."""
    share_done: float
    """Of the phase, lies behind, in [0, 1]."""


class Seen(NamedTuple):
    """What the model makes of B records."""

    image: Embedding
    """Of the weak view."""
    text: Embedding
    """Of the sentence, mirrored where the picture is."""
    grounding: Grounding
    """Of the sentence in the weak view."""
    other_image: Embedding | None
    """Of the strong view; None where nothing asks for it, like `other_text`."""
    other_text: Embedding | None
    """Of another wording."""
    other_grounding: Grounding | None
    """Of the other wording in the strong view; None without `method.grounding_consistency`."""
    mask: Tensor | None
    """n x H x W class indices of the n labelled records, which come first; None: there are none."""
    identity: Tensor
    """B int64: equal where records have the same words, in the picture as it was shown."""
    sentence: Tensor
    """B int64, on the CPU: the record's sentence, by its number at the site."""

    sentences: Sentences | None = None
    """Those that a picture's own is told from; None: those of the batch."""
    own: Any = None
    """What the method's `look` gave."""

    def pooled(self) -> Tensor:
        """v_t of Eq. 11: pixel features under the text-guided mask, B x G."""
        return masked_pool(self.grounding.pixels.float(), foreground(self.grounding.logits))


class PretrainingMethod(ABC):
    """The losses of step 1 that need no mask.

    Args:
        vlm: the model that is trained; `vlm.pretraining` holds what `modules` gave.
    """

    coupled: ClassVar[bool] = False
    """Whether not even public negatives or groups of records can keep its records apart: then no noise can make it
    private."""

    @classmethod
    def modules(cls, config: TrainingConfig, image: ImageTower, width: int) -> nn.Module | None:
        """What it trains beside the towers and the grounding decoder; it travels with them, and step 2 does not ask it.

        Args:
            image: the image tower that it will see.
            width: E of the token features.
        """
        return None

    @classmethod
    def other_views(cls, config: TrainingConfig) -> bool:
        """Whether it needs the strong view and another wording."""
        return False

    def __init__(self, config: TrainingConfig, vlm: VisionLanguageModel):
        self.config, self.vlm = config, vlm
        self.settings: PretrainConfig = config.pretrain

    def read(self, sentences: Sequence[str]) -> None:  # noqa: B027 (most do not read)
        """The site's sentences in words, once, before the first batch; by their numbers at the site."""

    def look(self, shown: Shown) -> Any:
        """What else it makes of a batch, under the trainer's autocast: `Seen.own`."""
        return None

    @abstractmethod
    def similarity(self, a: Embedding, b: Embedding) -> Tensor:
        """How alike pictures and sentences (or two views of either) are, B x K in [-1, 1]."""

    @abstractmethod
    def contrasts(self, seen: Seen) -> dict[str, Tensor]:
        """Losses between the records of a batch, by name, each with its weight."""

    def regularisers(self, seen: Seen) -> dict[str, Tensor]:
        """Losses of each record by itself, by name, each with its weight."""
        return {}

    def figures(self, seen: Seen) -> dict[str, Tensor]:
        """What else is worth reporting of a batch: 0-dimensional and float32, where it was computed."""
        return {}

    def text_guided(self, seen: Seen) -> dict[str, Tensor]:
        """Eq. 11, which trains the grounding decoder without masks; nothing without `method.ltg`."""
        if not self.config.method.ltg:
            return {}
        same = same_sentence(seen.identity, seen.identity)
        text = seen.grounding.text.float()
        loss = text_guided_loss(seen.pooled(), text, same, self.vlm.log_scale_ltg, self.config.method.pairs)
        return {"ltg": self.settings.weight_ltg * loss}


def foreground(logits: Tensor) -> Tensor:
    """Probability that a pixel is not background, B x 1 x H x W."""
    logits = logits.float()
    return logits.sigmoid() if logits.shape[1] == 1 else 1 - logits.softmax(dim=1)[:, :1]
