"""Early fusion of a sentence and a picture, supervised (Chai et al. 2025, arXiv 2510.12482).

The sentence becomes a picture m(s) of three channels, which joins the picture x before both are moved together, so
that no flip or rotation parts them (`dusss_core.models.early_fusion`):

    L = L_sup(z(T x, T m(s)), T y) + WEIGHT mean |m(s) - x y|

T is the draw of geometry, y the mask (1 on any finding); the second term shows m where the finding is. It has no
semi-supervised form. Departures: L_sup is the harness's; the text encoder is the study's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dusss_core.augment import weak_view
from dusss_core.losses.precision import full_precision
from dusss_core.objectives.objective import Batch, Values
from dusss_core.objectives.supervised_with_text import SupervisedWithText

WEIGHT = 0.1
"""Of what the sentence's own picture learns."""


class EarlyFusion(SupervisedWithText):
    """Since m moves with x, a sentence is never mirrored, and pictures move freely."""

    networks = frozenset({"early_fusion"})

    def losses(self, batch: Batch, draw: torch.Generator, share_done: float) -> tuple[Tensor, Values]:
        host, (labelled, _) = self.host, batch
        picture, mask = host.pictures(labelled), host.masks(labelled)
        geometry = host.geometry(len(labelled), draw)
        view = host.normalise(weak_view(geometry.apply(picture), draw))
        text = host.words(labelled, draw, None)
        with host.autocast():
            drawn = host.student.drawn(text)
            logits = host.student.fused(view, geometry.apply(drawn)).float()
        supervised = self.supervised(logits, geometry.apply_mask(mask))
        shown = drawing_loss(drawn, picture, mask)
        return supervised + WEIGHT * shown, {"supervised": supervised.detach(), "drawing": shown.detach()}


@full_precision
def drawing_loss(drawn: Tensor, picture: Tensor, mask: Tensor) -> Tensor:
    """mean |m - x y|.

    Args:
        drawn: m, B x 3 x H x W. picture: x in [0, 1], B x C x H x W, of 1 or 3 channels. mask: y, B x H x W.
    """
    finding = picture * (mask > 0)[:, None]
    return (drawn - finding.expand_as(drawn)).abs().mean()
