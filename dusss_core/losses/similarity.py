"""Semantic-similarity supervision: cosines that know how uncertain a pair is (DuSSS, Eq. 1 to 5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dusss_core.config import UncertaintyConfig
from dusss_core.losses.precision import full_precision
from dusss_core.transfer import sent


class Gaussian(NamedTuple):
    """Diagonal Gaussians, one per row: the raw output of a Gaussian head."""

    mu: Tensor
    """B x D."""
    log_sigma: Tensor
    """B x D, log of the standard deviation, not yet clamped."""


class Embedding(NamedTuple):
    """What the contrastive losses compare: B pictures or sentences by their [CLS] projection and Gaussian."""

    semantic: Tensor
    """B x D, L2-normalised."""
    gaussian: Gaussian


@full_precision
def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the rows of a (B x D) with the rows of b (K x D): B x K, float32.

    A row that is zero (nothing was pooled) has cosine 0 with everything. Rows are normalised here again,
    because unit length in bfloat16 is off by up to 0.4 %, which is more than most distances that matter.
    """
    return F.normalize(a, dim=-1, eps=1e-6) @ F.normalize(b, dim=-1, eps=1e-6).T


@full_precision
def semantic_distance(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Ds: Euclidean distance of the unit vectors along a (B x D) and b (K x D), in [sqrt(eps), 2]: B x K.

    sqrt(2 - 2 cos) with the radicand clamped to at least `eps`: at duplicates the gradient is 0, not NaN.
    """
    return _distance(cosine(a, b), eps)


@full_precision
def wasserstein2(mu_a: Tensor, log_sigma_a: Tensor, mu_b: Tensor, log_sigma_b: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of diagonal Gaussians (Eq. 1), averaged over D: B x K, at least 0.

    Args:
        mu_a, log_sigma_a: B x D. mu_b, log_sigma_b: K x D.

    Both norms are expanded into one matrix product, so nothing of size B x K x D is made.
    """
    a = torch.cat([mu_a, log_sigma_a.exp()], dim=-1)
    b = torch.cat([mu_b, log_sigma_b.exp()], dim=-1)
    # Distances do not change when all points move together; near the origin fewer digits cancel.
    centre = torch.cat([a, b]).mean(dim=0).detach()
    a, b = a - centre, b - centre
    squared = a.square().sum(dim=-1)[:, None] + b.square().sum(dim=-1)[None, :] - 2 * a @ b.T
    return squared.clamp(min=0) / mu_a.shape[-1]


@full_precision
def gaussian_distance(a: Gaussian, b: Gaussian, config: UncertaintyConfig) -> Tensor:
    """Eq. 1 as Eq. 2 has it: of Gaussians whose log sigma is held between the bounds of `config`, B x K."""
    low, high = config.log_sigma_min, config.log_sigma_max
    return wasserstein2(a.mu, a.log_sigma.clamp(low, high), b.mu, b.log_sigma.clamp(low, high))


@full_precision
def supervised_similarity(
    a: Embedding, b: Embedding, config: UncertaintyConfig, *, sss: bool, detach_uncertainty: bool
) -> tuple[Tensor, Tensor]:
    """The uncertainty cosine similarity of Eq. 5 and the D_SSS of Eq. 4 behind it, both B x K, float32.

    Args:
        a: B pictures or sentences. b: K of them.
        config: a, b and lambda of Eq. 2 and 4; log sigma is clamped to its bounds here.
        sss: False gives the plain cosine and D_SSS = 1.
        detach_uncertainty: no gradient through Du (Eq. 2). The distance Ds in Eq. 3 keeps its own: it pulls
            the same way as the cosine, whereas Du offers a way to look similar without alignment (Eq. 18).
    """
    similarity = cosine(a.semantic, b.semantic)
    if not sss:
        return similarity, torch.ones_like(similarity)
    uncertainty = config.scale * gaussian_distance(a.gaussian, b.gaussian, config) + config.offset
    if detach_uncertainty:
        uncertainty = uncertainty.detach()
    d_sss = torch.exp(-config.constraint * uncertainty / _distance(similarity))
    return 1 - (1 - similarity) * d_sss, d_sss


@full_precision
def sigma_regulariser(*gaussians: Gaussian) -> Tensor:
    """Mean squared log sigma over all entries of all Gaussians, before clamping: a scalar, 0 at sigma = 1."""
    squares = torch.stack([gaussian.log_sigma.square().sum() for gaussian in gaussians]).sum()
    return squares / max(1, sum(gaussian.log_sigma.numel() for gaussian in gaussians))


def saturation(d_sss: Tensor) -> dict[str, Tensor]:
    """The 10 %, 50 % and 90 % quantiles of D_SSS, as metrics, on its device; {} for no pairs.

    Near 0 every pair counts as similar, near 1 the uncertainty does nothing: either way the supervision is
    gone.
    """
    values = d_sss.detach().float().flatten()
    if not len(values):
        return {}
    (shares,) = sent(values.device, torch.tensor([0.1, 0.5, 0.9]))
    quantiles = torch.quantile(values, shares)
    return dict(zip(("dsss_p10", "dsss_p50", "dsss_p90"), quantiles.unbind(), strict=True))


def saturation_warning(p10: float, p50: float, p90: float) -> str | None:
    """Why semantic-similarity supervision does nothing at these quantiles of D_SSS; None if it may do something."""
    if p50 < LOWEST:
        return f"D_SSS is saturated near 0 (median {p50:.3f}): every pair counts as similar. {_REMEDY}"
    if p50 > HIGHEST:
        return f"D_SSS is saturated near 1 (median {p50:.3f}): uncertainty plays no part. {_REMEDY}"
    if p90 - p10 < LEAST_SPREAD:
        return (
            f"D_SSS is nearly constant ({p10:.3f} to {p90:.3f} for the middle 80 % of the pairs): it scales all "
            f"similarities alike, as a temperature would. {_REMEDY}"
        )
    return None


LOWEST, HIGHEST = 0.05, 0.95
"""Medians of D_SSS beyond which it is called saturated; a good start is between 0.2 and 0.8."""
LEAST_SPREAD = 0.1
"""Difference between the 90 % and the 10 % quantile of D_SSS below which it is called constant."""
_REMEDY = "See pretrain.uncertainty and method.detach_uncertainty; method.sss: false does without it"


def _distance(similarity: Tensor, eps: float = 1e-6) -> Tensor:
    return (2 - 2 * similarity).clamp(min=eps).sqrt()
