"""LViT's semi-supervised training (Li et al., IEEE TMI 2023, arXiv 2206.14718), from the paper: its code is not
released.

    L = L_sup(z, y) + w(t) [ L_pseudo(z_u, T P_u) + LV mean (1 - cos(p_u, T c_u)) ]

P_u, the exponential pseudo-label iteration (EPI), is a running mean of what the student said of the picture as it is,
with its sentence, each time that it was drawn; T moves it as the picture was moved. c_u is the mask of the labelled
sentence that is closest to the picture's own, the mean where several pictures have that sentence. Both stay at the
site: the bank of P, and the masks.

After n visits alpha is min(1 - 1 / (n + 1), BETA): BETA alone, once an epoch in hundreds of epochs, would hardly move
in the few rounds of a federation. The bank has 8 bits a pixel, rounded up or down at random by what is left over: to
the nearest, a mean of many visits would stand still. Departures: w(t) is ramped up over the whole phase, since a mean
of early answers calls everything background and holds the student to it; L_sup and L_pseudo are the harness's, but in
`lvit_balanced`, whose L_sup is that of the published code.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dusss_core.config import TrainingConfig
from dusss_core.fingerprints import fingerprint, same
from dusss_core.inference import evaluating
from dusss_core.losses import probabilities, sigmoid_rampup
from dusss_core.losses.precision import full_precision
from dusss_core.losses.schedules import ema_alpha
from dusss_core.losses.segmentation import pseudo_label_loss
from dusss_core.models.words import Words, joined
from dusss_core.objectives.objective import Batch, Host, Values
from dusss_core.objectives.supervised_with_text import SupervisedWithText
from dusss_core.seeds import device_generator
from dusss_core.transfer import sent

LV = 0.1
"""Weight of the LV loss beside the pseudo-label's."""
BETA = 0.99
"""Largest weight of what the bank held before."""
AT_ONCE = 256
"""Masks that are read at a time: memory does not grow with the site's labelled pictures."""
_RECORDS = "records"


class LViT(SupervisedWithText):
    """With the bank, and the masks of own labelled sentences."""

    networks = frozenset({"lvit", "vilt"})
    coupled = True
    """The mask of one record teaches others."""

    def __init__(self, host: Host):
        super().__init__(host)
        self.bank = Bank()

    @classmethod
    def learns_from(cls, config: TrainingConfig) -> Literal["all", "with_text", "none"]:
        return "all"

    def start(self) -> None:
        self.bank = Bank()

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        host, (labelled, unlabelled) = self.host, batch
        weight = self.unlabelled_weight(share_done)
        remembered = self._visit(unlabelled, draw) if len(unlabelled) and weight else None
        kinds = [positions for positions in batch if len(positions)]
        views, geometries = zip(*(self.told_view(positions, draw) for positions in kinds), strict=True)
        told = [
            host.words(positions, draw, geometry.flipped) for positions, geometry in zip(kinds, geometries, strict=True)
        ]
        with host.autocast():
            logits = host.student(host.normalise(torch.cat(views)), joined(told)).float()
        total, figures = logits.new_zeros(()), {}
        if len(labelled):
            supervised = self.supervised(logits[: len(labelled)], geometries[0].apply_mask(host.masks(labelled)))
            total, figures["supervised"] = total + supervised, supervised.detach()
        if remembered is not None:
            own, geometry = logits[len(labelled) :], geometries[-1]
            outside = torch.zeros(own.shape[1], device=own.device)
            if len(outside) > 1:
                outside[0] = 1.0  # of several channels the first is the background
            pseudo = pseudo_label_loss(own, geometry.apply_logits(remembered, outside), dice=self.settings.dice)
            total, figures["pseudo"] = total + weight * pseudo, pseudo.detach()
            closest = self._closest(unlabelled)
            if closest is not None:
                masks, there = closest
                # into a mask the background comes from outside, whatever comes into the picture
                costs = template_costs(own, geometry.apply(masks, "zeros"))
                lv = (costs * there).sum() / there.sum().clamp(min=1)
                total, figures["lv"] = total + weight * LV * lv, lv.detach()
        return total, figures

    def unlabelled_weight(self, share_done: float) -> float:
        return self.settings.weight_semi * sigmoid_rampup(share_done, 1.0)

    def state(self) -> dict[str, Tensor]:
        bank = self.bank.state()
        return {**bank, _RECORDS: self._records()} if bank else {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back a `state`; one of other records is forgotten."""
        known = same(tensors.get(_RECORDS), self._records())
        bank = {name: value.clone() for name, value in tensors.items() if name != _RECORDS}
        self.bank = Bank(**bank) if known else Bank()

    def _records(self) -> Tensor:
        """Of which records the bank is. Of their pictures it would take a reading of them all."""
        return fingerprint(self.host.train.select(self.host.unlabelled), pictures=False)

    @torch.no_grad()
    def _visit(self, positions: np.ndarray, draw: torch.Generator) -> Tensor:
        """P of these records, B x C x H x W, after one visit more: what the student makes of the picture as it is."""
        host = self.host
        drawn, place = np.unique(positions, return_inverse=True)
        tokens, mask = host.text.features(torch.from_numpy(host.train.sentence[drawn]))
        picture = host.pictures(drawn)
        told = Words(tokens.to(picture.device), mask.to(picture.device))
        with evaluating(host.student), host.autocast():
            now = probabilities(host.student(host.normalise(picture), told).float())
        rows = np.searchsorted(host.unlabelled, drawn)
        means = self.bank.visit(rows, now, len(host.unlabelled), draw)
        return means.index_select(0, *sent(means.device, torch.from_numpy(place)))

    def _closest(self, positions: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """Masks of the closest labelled sentences, B x 1 x H x W, and which records have a sentence, B; None where no
        labelled picture has one."""
        templates = self._templates
        if templates is None:
            return None
        device = templates.masks.device
        (sentence,) = sent(device, torch.from_numpy(self.host.train.sentence[positions]))
        which = templates.closest.index_select(0, sentence.clamp(min=0))
        return templates.masks.index_select(0, which), (sentence >= 0).float()

    @property
    def _templates(self) -> Templates | None:
        """Those of the present host: a trainer that is handed on from site to site has another one."""
        if self.__dict__.get("_made_for") is not self.host:
            self._made_for = self.host
            self.__dict__.pop("_made", None)
        return self._made

    @cached_property
    def _made(self) -> Templates | None:
        return templates_of(self.host)


class LViTBalanced(LViT):
    """With the published code's supervised loss, to tell what that is worth."""

    def supervised(self, logits: Tensor, mask: Tensor) -> Tensor:
        return balanced_loss(logits, mask)


class Bank:
    """P of each unlabelled record, with 8 bits a pixel, and how often it was visited.

    Args:
        epi, visits: of an earlier process, N x C x H x W uint8, 255 for a probability of 1, and N int64; None: there
            was no visit yet.
    """

    def __init__(self, epi: Tensor | None = None, visits: Tensor | None = None):
        self._epi, self._visits = epi, visits

    def visit(self, rows: np.ndarray, now: Tensor, records: int, draw: torch.Generator) -> Tensor:
        """Take in what is now said of some records, each at most once.

        Args:
            rows: n different ones. now: n x C x H x W probabilities. records: N.

        Returns:
            P of the rows, n x C x H x W float32.
        """
        if self._epi is None or self._epi.shape != (records, *now.shape[1:]):
            self._epi = torch.zeros(records, *now.shape[1:], dtype=torch.uint8, device=now.device)
            self._visits = torch.zeros(records, dtype=torch.int64)
        self._epi = self._epi.to(now.device)
        known = torch.from_numpy(rows)
        alpha = torch.tensor([ema_alpha(visits, BETA) for visits in self._visits[known].tolist()])
        self._visits[known] += 1
        alpha, places = sent(now.device, alpha, known)
        alpha = alpha[:, None, None, None]
        mean = alpha * self._epi.index_select(0, places).float() / 255 + (1 - alpha) * now
        chance = torch.rand(mean.shape, generator=device_generator(draw, mean.device), device=mean.device)
        stored = (255 * mean + chance).floor_().clamp_(0, 255).to(torch.uint8)
        self._epi.index_copy_(0, places, stored)
        return mean

    def state(self) -> dict[str, Tensor]:
        """Its tensors, by the names of its arguments; nothing before the first visit."""
        return {} if self._epi is None else {"epi": self._epi, "visits": self._visits}


class Templates(NamedTuple):
    """What the labelled sentences of a site look like."""

    masks: Tensor
    """K x 1 x H x W float32 in [0, 1]: for each sentence of a labelled picture the mean of such pictures' masks."""
    closest: Tensor
    """int64, for each sentence of the site the closest of the K, by the cosine of the means of the tokens."""


def templates_of(host: Host) -> Templates | None:
    """The masks of own labelled sentences; None where no labelled picture has a sentence."""
    train = host.train
    shown = host.labelled[train.has_text[host.labelled]]
    if not len(shown):
        return None
    known, which = np.unique(train.sentence[shown], return_inverse=True)
    first = host.masks(shown[:1])
    device, total = first.device, torch.zeros(len(known), 1, *first.shape[1:], device=first.device)
    place, count, numbers = sent(
        device, torch.from_numpy(which), torch.from_numpy(np.bincount(which)).float(), torch.from_numpy(known)
    )
    for start in range(0, len(shown), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        total.index_add_(0, place[some], (host.masks(shown[some]) > 0).float()[:, None])
    tokens, mask = host.text.features(torch.arange(len(train.sentences)))
    meaning = F.normalize(Words(tokens, mask).mean(), dim=1).to(device)
    closest = (meaning @ meaning.index_select(0, numbers).T).argmax(dim=1)
    return Templates(total / count[:, None, None, None], closest)


@full_precision
def template_costs(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - cos of the foreground's probabilities and a template, over all pixels: B.

    Args:
        logits: B x C x H x W; of several channels the foreground's are joined. masks: B x 1 x H x W.
    """
    p = probabilities(logits)
    foreground = p if p.shape[1] == 1 else 1 - p[:, :1]
    return 1 - F.cosine_similarity(foreground.flatten(1), masks.flatten(1), dim=1)


@full_precision
def balanced_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Half of Dice with squared denominators, and half of balanced cross-entropy: the mean over all foreground pixels
    of the batch and the mean over all background pixels, halves. Of several classes: the mean over the classes that
    are there; Dice is the mean over the foreground classes.

    Args:
        logits: B x C x H x W. mask: B x H x W class indices.
    """
    p, classes = probabilities(logits), max(2, logits.shape[1])
    truth = F.one_hot(mask.long().clamp(max=classes - 1), classes).movedim(-1, 1).to(logits.dtype)
    log_p = (
        torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=1)
        if logits.shape[1] == 1
        else logits.log_softmax(dim=1)
    )
    pixels = truth.sum(dim=(0, 2, 3))
    entropy = -(truth * log_p).sum(dim=(0, 2, 3)) / pixels.clamp(min=1)
    entropy = entropy.sum() / (pixels > 0).sum()
    predicted, true = (p, truth[:, 1:]) if p.shape[1] == 1 else (p[:, 1:], truth[:, 1:])
    overlap, smooth = (predicted * true).sum(dim=(2, 3)), 1e-5
    squares = predicted.square().sum(dim=(2, 3)) + true.square().sum(dim=(2, 3))
    dice = 1 - (2 * overlap + smooth) / (squares + smooth)
    return (dice.mean() + entropy) / 2
