"""Dual contrastive learning: InfoNCE across and within modalities (DuSSS, Eq. 6 to 9).

Pictures of a batch often share a sentence, so "the other pairs are negatives" is wrong as often as the
sentences repeat. `pairs` says what becomes of pairs with the same sentence:

- multi_positive: they are positives of each other;
- masked: they are neither positives nor negatives;
- identity: they are negatives (the paper, literally).

The last two need row i and column i to belong together.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from dusss_core.losses.precision import full_precision

Pairs = Literal["multi_positive", "masked", "identity"]

MAX_SCALE = 100.0
"""Largest 1 / tau."""


def same_sentence(index_a: Tensor, index_b: Tensor) -> Tensor:
    """Which pairs share their sentence: B x K, bool.

    Args:
        index_a, index_b: B and K sentence numbers of records in batch order; -1 (no text) equals nothing.

    The diagonal is always True: a record goes with itself, with or without text. Records without text are for
    the caller to leave out of losses that compare with text.
    """
    same = (index_a[:, None] == index_b[None, :]) & (index_a[:, None] >= 0)
    return same | torch.eye(*same.shape, dtype=torch.bool, device=same.device)


@full_precision
def temperature_scale(log_scale: Tensor) -> Tensor:
    """1 / tau = exp(log_scale), at most 100.

    The clamp holds the value but lets the gradient through: a parameter beyond the bound can come back.
    """
    bounded = log_scale.clamp(max=math.log(MAX_SCALE))
    return (log_scale + (bounded - log_scale).detach()).exp()


@full_precision
def info_nce(
    similarity: Tensor,
    positives: Tensor,
    tau_scale: Tensor | float,
    pairs: Pairs,
    *,
    columns: Tensor | None = None,
    log_weights: Tensor | None = None,
) -> Tensor:
    """InfoNCE of each row against the columns (Eq. 6, 7), averaged over the rows with a positive: a scalar.

    With several positives in a row the loss is the mean over them of -log softmax (the form of SupCon's
    L_out). The other way, -log of their summed softmax, is content when one positive alone has all the mass:
    the easiest pair would be pulled and the rest ignored, or even pushed away as its rivals.

    Args:
        similarity: B x K, in [-1, 1].
        positives: B x K, bool.
        tau_scale: 1 / tau, from `temperature_scale`.
        pairs: see the module; masked and identity take as row i's positive column i alone, where it is one.
        columns: K, bool: the columns that take part at all; None: all.
        log_weights: K, log of how often each column counts; None: once each. A row then costs what it would if each
            column stood there so often and one of its positives were drawn: at constant similarity the entropy of the
            weights.

    Without any positive the loss is 0 and still differentiable.
    Raises ValueError where masked or identity meet a similarity that is not square.
    """
    candidates = torch.ones_like(positives) if columns is None else columns[None, :].expand_as(positives)
    targets = positives & candidates
    if pairs != "multi_positive":
        if positives.shape[0] != positives.shape[1]:
            raise ValueError(f"pairs: {pairs} needs aligned rows and columns, got {tuple(positives.shape)}")
        own = torch.eye(len(positives), dtype=torch.bool, device=positives.device)
        if pairs == "masked":
            candidates = candidates & (own | ~positives)
        targets = targets & own
    count = targets.sum(dim=1)
    valid = count > 0
    logits = similarity * tau_scale
    if log_weights is not None:
        logits = logits + log_weights
    log_total = logits.masked_fill(~candidates, -torch.inf).logsumexp(dim=1, keepdim=True)
    per_row = torch.where(targets, log_total - logits, 0).sum(dim=1) / count.clamp(min=1)
    return per_row.sum() / valid.sum().clamp(min=1)


@full_precision
def cross_modal_loss(similarity: Tensor, positives: Tensor, log_scale: Tensor, pairs: Pairs) -> Tensor:
    """L_cmc, Eq. 8: InfoNCE from pictures (rows) to their sentences (columns) and back, averaged.

    Args:
        similarity: B x B. positives: B x B, bool; a record whose diagonal is False (no text) takes no part,
            neither as a row nor as a negative of others.
        log_scale: learned log(1 / tau).
    """
    scale = temperature_scale(log_scale)
    taking_part = positives.diagonal()
    positives = positives & taking_part[:, None] & taking_part[None, :]
    to_text = info_nce(similarity, positives, scale, pairs, columns=taking_part)
    to_image = info_nce(similarity.T, positives.T, scale, pairs, columns=taking_part)
    return (to_text + to_image) / 2


@full_precision
def intra_modal_loss(
    sim_image: Tensor,
    sim_text: Tensor,
    positives_image: Tensor,
    positives_text: Tensor,
    log_scale: Tensor,
    pairs: Pairs,
) -> Tensor:
    """L_imc, Eq. 9: InfoNCE from pictures to their augmented views, and from sentences to theirs, averaged.

    Args:
        sim_image, positives_image: B x B, rows raw and columns augmented; the latter from `same_sentence`.
        sim_text, positives_text: the same for texts; may be of another size (records with text only), even
            empty.

    A picture's positive is its own view alone: sharing a sentence ("bilateral infection, two areas") does not
    make two chests the same picture. It does not make them opposites either, so unless `pairs` is identity
    such pairs leave the negatives.
    """
    scale = temperature_scale(log_scale)
    of_images = info_nce(sim_image, positives_image, scale, "identity" if pairs == "identity" else "masked")
    of_texts = info_nce(sim_text, positives_text, scale, pairs)
    return (of_images + of_texts) / 2
