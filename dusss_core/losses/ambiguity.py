"""An uncertainty that tells ambiguity: how many sentences fit a picture about equally.

Left to itself the 2-Wasserstein distance of Eq. 1 is nearly the same for all pairs, and D_SSS of Eq. 4 one number. Here
it learns the perplexity of p(sentence | picture), without a say in what is similar. Not in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dusss_core.losses.precision import full_precision


@full_precision
@torch.no_grad()
def ambiguity(
    similarity: Tensor,
    tau_scale: Tensor | float,
    power: float,
    *,
    columns: Tensor | None = None,
    log_weights: Tensor | None = None,
) -> Tensor:
    """A of each pair, B x K, positive, near 1 for a pair as ambiguous as most; no gradient.

    With n_i = exp H(p(. | i)), the number of sentences that fit picture i about equally, and n_k the mean of n_i over
    the pictures, weighted by how well sentence k fits them: A_ik = ((n_i / mean n_i + n_k / mean n_k) / 2) ** power.

    Args:
        similarity: B x K cosines of pictures with distinct sentences.
        tau_scale: 1 / tau.
        power: how far ambiguous pairs stand out.
        columns: K bool: sentences that take part; None: all.
        log_weights: K, log of how often each sentence is used; None: equally often.
    """
    logits = similarity * tau_scale
    if log_weights is not None:
        logits = logits + log_weights
    there = _taking_part(similarity, columns)
    log_p = logits.masked_fill(~there, -torch.inf).log_softmax(dim=1)
    of_picture = torch.where(there, -log_p.exp() * log_p, 0).sum(dim=1).exp()
    # as shares of logarithms: a sentence that fits none of the pictures has its own mean too, however small p is
    of_sentence = (log_p.masked_fill(~there, 0).softmax(dim=0) * of_picture[:, None]).sum(dim=0)
    mean_of_sentence = torch.where(there[0], of_sentence, 0).sum() / there[0].sum().clamp(min=1)
    pair = (of_picture / of_picture.mean())[:, None] + (of_sentence / mean_of_sentence)[None, :]
    return (pair / 2) ** power


@full_precision
def ambiguity_loss(distance: Tensor, target: Tensor, columns: Tensor | None = None, eps: float = 1e-3) -> Tensor:
    """Mean of log(W + eps) + A / (W + eps) over the pairs, least where W + eps = A: a scalar.

    Args:
        distance: B x K, W: squared 2-Wasserstein distances, at least 0.
        target: B x K, A, from `ambiguity`.
        columns: K bool: sentences that take part; None: all.

    The likelihood of an exponential distribution with mean W: relative errors count alike at all sizes.
    """
    there = _taking_part(distance, columns)
    cost = (distance + eps).log() + target / (distance + eps)
    return torch.where(there, cost, 0).sum() / there.sum().clamp(min=1)


def _taking_part(pairs: Tensor, columns: Tensor | None) -> Tensor:
    if columns is None:
        return torch.ones_like(pairs, dtype=torch.bool)
    return columns[None, :].expand(pairs.shape)
