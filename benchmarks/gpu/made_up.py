"""Pictures, sentences and features that mean nothing, for what is timed or rehearsed: no file, no text encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dusss_core.records import Split
from dusss_core.seeds import derive_seed, generator

if TYPE_CHECKING:
    from dusss_core.config import TrainingConfig
    from dusss_core.text.bank import TextBank

WIDTH = 384
"""Of the made-up token features; MiniLM's."""
_SIDES = ("upper left", "lower left", "upper right", "lower right", "middle left", "all right")
SENTENCES = tuple(
    sorted(f"{side} pulmonary infection, {n} infected area, {side} lung." for side in _SIDES for n in ("one", "two"))
)


def made_up_split(n: int, size: int, channels: int, labelled: float = 0.25, seed: int = 1) -> Split:
    """`n` pictures of noise with one bright rectangle each, which is the mask; sentences repeat as true ones do.

    Args:
        labelled: share of the pictures whose mask may be trained on, the first ones.
    """
    draw = np.random.default_rng(derive_seed(seed, "made up", n, size))
    images = draw.integers(0, 128, (n, channels, size, size), np.uint8)
    masks = np.zeros((n, size, size), np.uint8)
    for picture, mask, (top, left) in zip(images, masks, draw.integers(0, size // 2, (n, 2)), strict=True):
        there = np.s_[top : top + size // 3, left : left + size // 4]
        mask[there] = 1
        picture[:, *there] += 96
    return Split(
        images=images,
        masks=masks,
        labelled=np.arange(n) < labelled * n,
        masked=np.ones(n, bool),
        sentence=draw.integers(0, len(SENTENCES), n),
        sentences=SENTENCES,
        ids=tuple(f"made_up_{i}" for i in range(n)),
    )


def made_up_text_logits(split: Split) -> np.ndarray:
    """N x 1 x H x W float16, in place of text-guided masks: mostly right."""
    draw = np.random.default_rng(derive_seed("made up logits", len(split)))
    true = np.where(np.asarray(split.masks)[:, None] > 0, 2.0, -2.0)
    return (true + draw.normal(0, 1, (len(split), 1, 1, 1))).astype(np.float16)


def with_made_up_text(config: TrainingConfig, folder: Path) -> TrainingConfig:
    """`config` whose text encoder is a folder that says how wide the features are, and holds no encoder."""
    return without_encoder(config, folder, WIDTH)


def without_encoder(config: TrainingConfig, folder: Path, width: int) -> TrainingConfig:
    """`config` with `vlm.text.encoder` naming `folder`, in which a config file alone tells the networks the width."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": width}))
    text = config.vlm.text.model_copy(update={"encoder": str(folder)})
    return config.model_copy(update={"vlm": config.vlm.model_copy(update={"text": text})})


def made_up_bank(config: TrainingConfig, split: Split, device: torch.device) -> TextBank:
    """The bank of the split's sentences, with features of the made-up encoder."""
    from dusss_core.text.bank import build_text_bank

    return build_text_bank(split.sentences, config.vlm.text, None, device, encoder=MadeUpEncoder())


class MadeUpEncoder(nn.Module):
    """What `build_text_bank` asks of a text encoder: one random vector per word."""

    digest = "made up"
    width = WIDTH

    def __init__(self):
        super().__init__()
        draw = generator("made-up encoder")
        self.words = nn.Parameter(torch.randn(512, WIDTH, generator=draw), requires_grad=False)

    def tokenize(self, sentences: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """B x L int64 and bool, L a multiple of 8."""
        split = [[derive_seed(word) % len(self.words) for word in sentence.split()] for sentence in sentences]
        length = -(-max(len(words) for words in split) // 8) * 8
        ids = torch.tensor([[*words, *[0] * (length - len(words))] for words in split])
        return ids, torch.arange(length) < torch.tensor([[len(words)] for words in split])

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.words[ids]
