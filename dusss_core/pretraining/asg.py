"""ASG: anatomical structure-guided pretraining (Li et al., MICCAI 2024), with zones in place of anatomical boxes.

    L = L_IRA + L_ARSA + 5 L_IRL + L_ERL

L_IRA is the contrast of `alignment`. L_ARSA, within one picture: each zone that the sentence names is matched with the
words that name it, and the other way. L_IRL: queries, one for each word that rules can read, look at the patches and
say whether the sentence has it (BCE). L_ERL: the batch's pictures are to be as near to its sentences as what rules read
from these is alike, 0.8 of the same sentence and 0.2 of the cosine of their labels (symmetric KL).

Where it departs from the paper, whose boxes, rules and labels were never released: regions are six zones of the
picture, and labels what `dusss_core.text.zones` reads from the sentence, 18 words in place of 40 findings. Words are
matched with all six zones, since a sentence that names one zone would else teach nothing. Where a study's pictures have
their zones, `pretrain.zones` says. Zones and labels stay at the site, and are mirrored with the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dusss_core.config import TrainingConfig, ZonesConfig
from dusss_core.losses.contrastive import same_sentence
from dusss_core.losses.precision import full_precision
from dusss_core.models.grounding import POSITION_CHANNELS, position_code
from dusss_core.models.image_tower import ImageTower
from dusss_core.pretraining.alignment import TEMPERATURE, Alignment
from dusss_core.pretraining.method import Seen, Shown
from dusss_core.text.encoder import token_spans
from dusss_core.text.wording import mirror
from dusss_core.text.zones import WORDS, ZONES, Reading, reading_of
from dusss_core.transfer import sent

WEIGHT_ZONES = 1.0
WEIGHT_LABELS = 5.0
WEIGHT_RELATIONS = 1.0
OWN_SHARE = 0.8
"""Of L_ERL's target: the same sentence; the rest is the cosine of labels."""
LAYERS = 4
HEADS = 4
LABELS = (*ZONES, *WORDS)


class ASG(Alignment):
    """`vlm.pretraining` is its `Decoder`."""

    @classmethod
    def modules(cls, config: TrainingConfig, image: ImageTower, width: int) -> nn.Module:
        return Decoder(image.channels[-1], config.vlm.dim)

    def read(self, sentences: Sequence[str]) -> None:
        shown = [words for sentence in sentences for words in (sentence, mirror(sentence))]
        readings = [reading_of(words) for words in shown]
        spans = token_spans(self.config.vlm.text, shown)
        length = max((len(some) for some in spans), default=1)
        self._labels = torch.tensor([labels_of(reading) for reading in readings]).reshape(-1, 2, len(LABELS))
        parts = [parts_of(reading, some, length) for reading, some in zip(readings, spans, strict=True)]
        self._parts = torch.tensor(parts, dtype=torch.bool).reshape(-1, 2, len(ZONES), length)

    def look(self, shown: Shown) -> Looks:
        device, decoder = shown.picture.device, self.vlm.pretraining
        patches = shown.image.levels[-1]
        known = shown.sentence, shown.flipped.long()
        parts = _as_long_as(self._parts[known], shown.tokens.shape[1])
        where = zone_weights(patches.shape[-2:], self.config.pretrain.zones)
        labels, parts, where = sent(device, self._labels[known], parts, where)
        zones = decoder.zone(torch.einsum("bchw,zhw->bzc", patches.float(), where))
        own = parts.float() / parts.sum(dim=2, keepdim=True).clamp(min=1)
        words = decoder.word(own @ shown.text.tokens.float())
        zones, words = (F.normalize(x.float(), dim=-1) for x in (zones, words))
        return Looks(zones, words, parts, decoder(patches), labels)

    def contrasts(self, seen: Seen) -> dict[str, Tensor]:
        looks: Looks = seen.own
        target = relations(looks.labels, seen.identity)
        similarity = self.similarity(seen.image, seen.text)
        relation = (relation_loss(similarity, target) + relation_loss(similarity.T, target)) / 2
        return {
            "ira": self.instance(seen.image, seen),
            "zones": WEIGHT_ZONES * zone_loss(looks.zones, looks.words, looks.parts),
            "labels": WEIGHT_LABELS * label_loss(looks.answers, looks.labels),
            "relations": WEIGHT_RELATIONS * relation,
            **self.text_guided(seen),
        }


class Looks(NamedTuple):
    """Of B records."""

    zones: Tensor
    """B x 6 x D, length 1: what the picture shows in each zone."""
    words: Tensor
    """B x 6 x D, length 1: the words that name it; without meaning where none do."""
    parts: Tensor
    """B x 6 x L bool: which tokens these are."""
    answers: Tensor
    """B x LABELS logits."""
    labels: Tensor
    """B x LABELS, 0 or 1."""


class Decoder(nn.Module):
    """Zones and words in one space, and the queries that look for labels in the patches.

    Args:
        channels: of the patches. dim: D.
    """

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.zone = nn.Linear(channels, dim)
        self.word = nn.Linear(dim, dim)
        self.enter = nn.Conv2d(channels, dim, 1)
        self.position = nn.Conv2d(POSITION_CHANNELS, dim, 1)
        self.queries = nn.Parameter(torch.randn(len(LABELS), dim) * dim**-0.5)
        layer = nn.TransformerDecoderLayer(
            dim, HEADS, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(dim))
        self.answer = nn.Linear(dim, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """B x LABELS logits of B x channels x h x w patch features."""
        code = position_code(patches.shape[-2:], patches.device)
        seen = (self.enter(patches) + self.position(code.to(patches.dtype))).flatten(2).transpose(1, 2)
        asked = self.queries.to(seen.dtype).expand(len(seen), -1, -1)
        return self.answer(self.layers(asked, seen)).squeeze(-1)


# ---- what is read ----


def labels_of(reading: Reading) -> list[float]:
    """LABELS as 0 and 1."""
    return [float(label in reading.zones or label in reading.words) for label in LABELS]


def parts_of(reading: Reading, spans: Sequence[tuple[int, int]], length: int) -> list[list[bool]]:
    """6 x length: which tokens, by their characters, are words that name the zone."""
    own = [
        [any(start < until and since < end for since, until in reading.zones.get(zone, ())) for start, end in spans]
        for zone in ZONES
    ]
    return [row + [False] * (length - len(row)) for row in own]


def zone_weights(size: Sequence[int], settings: ZonesConfig) -> Tensor:
    """6 x h x w, on the CPU: what share each patch has in the mean over a zone. Patches lie in a grid over the picture;
    one that two zones share counts in both, by area."""
    rows = _overlap(size[0], [0.0, settings.upper_until, settings.lower_from, 1.0])
    sides = _overlap(size[1], [0.0, 0.5, 1.0])
    if settings.left == "right":
        sides = sides.flip(0)
    weights = rows[:, None, :, None] * sides[None, :, None, :]
    return weights.reshape(len(ZONES), *size)


def _overlap(count: int, edges: list[float]) -> Tensor:
    """Of each of `count` cells along the unit interval the part between two neighbouring edges; rows sum to 1."""
    cells = torch.arange(count) / count
    start, end = torch.tensor(edges[:-1])[:, None], torch.tensor(edges[1:])[:, None]
    common = (torch.minimum(cells + 1 / count, end) - torch.maximum(cells, start)).clamp(min=0)
    return common / common.sum(dim=1, keepdim=True)


def _as_long_as(parts: Tensor, length: int) -> Tensor:
    return F.pad(parts, (0, max(0, length - parts.shape[-1])))[..., :length]


# ---- losses ----


@full_precision
def zone_loss(zones: Tensor, words: Tensor, parts: Tensor) -> Tensor:
    """L_ARSA: InfoNCE within each picture, both ways, averaged over its named zones, then over pictures with any: a
    scalar. At equal similarity words cost ln 6, and zones ln of the number of named ones. Zones that the same words
    name have the same vector of words, and lose which of them it is: a constant.

    Args:
        zones, words: B x 6 x D, length 1. parts: B x 6 x L bool, which tokens name a zone.
    """
    named = parts.any(dim=2)
    scores = zones @ words.transpose(1, 2) / TEMPERATURE
    # a column of words that name nothing is no candidate; where no zone is named all are, and nothing is counted
    candidates = named[:, None, :] | ~named.any(dim=1)[:, None, None]
    own = scores.diagonal(dim1=1, dim2=2)
    to_words = scores.masked_fill(~candidates, -torch.inf).logsumexp(dim=2) - own
    to_zones = scores.logsumexp(dim=1) - own
    of_picture = torch.where(named, (to_words + to_zones) / 2, 0).sum(dim=1) / named.sum(dim=1).clamp(min=1)
    return of_picture.sum() / named.any(dim=1).sum().clamp(min=1)


@full_precision
def label_loss(answers: Tensor, labels: Tensor) -> Tensor:
    """L_IRL: BCE averaged over records and labels; ln 2 at logits of 0."""
    return F.binary_cross_entropy_with_logits(answers, labels.to(answers.dtype))


@full_precision
def relations(labels: Tensor, identity: Tensor) -> Tensor:
    """Target of L_ERL, B x B: rows sum to 1, no entry is 0.

    Args:
        labels: B x LABELS. identity: B int64, equal where records have the same words.
    """
    same = same_sentence(identity, identity).to(labels.dtype)
    alike = F.normalize(labels, dim=1) @ F.normalize(labels, dim=1).T
    target = OWN_SHARE * same / same.sum(dim=1, keepdim=True)
    target = target + (1 - OWN_SHARE) * alike / alike.sum(dim=1, keepdim=True).clamp(min=1)
    target = target.clamp(min=_LEAST)
    return target / target.sum(dim=1, keepdim=True)


@full_precision
def relation_loss(similarity: Tensor, target: Tensor) -> Tensor:
    """L_ERL: the mean of both KL divergences between softmax(similarity / tau) and the target, by row; 0 at the target.

    Args:
        similarity: B x B cosines. target: B x B, rows sum to 1, no entry is 0.
    """
    found, wanted = (similarity / TEMPERATURE).log_softmax(dim=1), target.log()
    return ((found.exp() - target) * (found - wanted)).sum(dim=1).mean() / 2


_LEAST = 1e-4
