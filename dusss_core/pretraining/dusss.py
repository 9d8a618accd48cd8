"""DuSSS step 1: dual contrastive learning, supervised by semantic similarity under uncertainty, Eq. 1 to 11.

Eq. 1 to 5 are `similarity` (dusss_core/losses/similarity.py), Eq. 6 to 9 the losses `cmc` and `imc`
(losses/contrastive.py), Eq. 11 is `ltg` (losses/text_guided.py). With the switches off it is plain CLIP.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dusss_core.config import TrainingConfig
from dusss_core.losses.ambiguity import ambiguity, ambiguity_loss
from dusss_core.losses.contrastive import (
    cross_modal_loss,
    info_nce,
    intra_modal_loss,
    same_sentence,
    temperature_scale,
)
from dusss_core.losses.similarity import (
    Embedding,
    cosine,
    gaussian_distance,
    saturation,
    sigma_regulariser,
    supervised_similarity,
)
from dusss_core.pretraining.method import PretrainingMethod, Seen


class Dusss(PretrainingMethod):
    """`method.sss`, `method.dcl` and `method.ltg` are its parts."""

    @classmethod
    def other_views(cls, config: TrainingConfig) -> bool:
        """Eq. 9 compares each picture and each sentence with another view of itself."""
        return config.method.dcl

    def similarity(self, a: Embedding, b: Embedding) -> Tensor:
        """Eq. 5, or the plain cosine without `method.sss`."""
        return self._supervised(a, b)[0]

    def contrasts(self, seen: Seen) -> dict[str, Tensor]:
        """The contrastive losses of Eq. 8, 9 and 11, within the batch."""
        method, settings, vlm = self.config.method, self.settings, self.vlm
        same = same_sentence(seen.identity, seen.identity)
        parts = {"cmc": settings.weight_cmc * self._cross_modal(seen, same)}
        if method.dcl:
            parts["imc"] = settings.weight_imc * intra_modal_loss(
                self.similarity(seen.image, seen.other_image),
                self.similarity(seen.text, seen.other_text),
                same,
                same,
                vlm.log_scale,
                method.pairs,
            )
        parts |= self.text_guided(seen)
        if method.sss and settings.uncertainty.weight_ambiguity:
            parts["ambiguity"] = settings.uncertainty.weight_ambiguity * self._ambiguity(seen, same)
        return parts

    def _ambiguity(self, seen: Seen, same: Tensor) -> Tensor:
        """The distances of Eq. 1 tell how many of the site's sentences, else of the batch's, fit about equally."""
        settings, known = self.settings.uncertainty, seen.sentences
        if known is None:
            # equal sentences are one that fits, not several
            text, log_count, distinct = seen.text, None, ~same.tril(diagonal=-1).any(dim=1)
        else:
            text, log_count, distinct = known.text, known.log_count, None
        target = ambiguity(
            cosine(seen.image.semantic, text.semantic),
            temperature_scale(self.vlm.log_scale),
            settings.ambiguity_power,
            columns=distinct,
            log_weights=log_count,
        )
        distance = gaussian_distance(seen.image.gaussian, text.gaussian, settings)
        return ambiguity_loss(distance, target, distinct)

    def _cross_modal(self, seen: Seen, same: Tensor) -> Tensor:
        """L_cmc, Eq. 8: a sentence is told from the batch's pictures, a picture from the site's sentences if they are
        at hand, else from the batch's."""
        similarity = self.similarity(seen.image, seen.text)
        if seen.sentences is None:
            return cross_modal_loss(similarity, same, self.vlm.log_scale, self.config.method.pairs)
        known, scale = seen.sentences, temperature_scale(self.vlm.log_scale)
        own = seen.identity[:, None] == known.identity[None]
        to_text = info_nce(
            self.similarity(seen.image, known.text), own, scale, "multi_positive", log_weights=known.log_count
        )
        to_image = info_nce(similarity.T, same, scale, "multi_positive")
        return (to_text + to_image) / 2

    def regularisers(self, seen: Seen) -> dict[str, Tensor]:
        """Against inflated uncertainty, which would make any pair similar (Eq. 18)."""
        if not self.config.method.sss:
            return {}
        weight = self.settings.uncertainty.regulariser
        return {"sigma": weight * sigma_regulariser(seen.image.gaussian, seen.text.gaussian)}

    @torch.no_grad()
    def figures(self, seen: Seen) -> dict[str, Tensor]:
        """Quantiles of D_SSS, Eq. 4."""
        return saturation(self._supervised(seen.image, seen.text)[1]) if self.config.method.sss else {}

    def _supervised(self, a: Embedding, b: Embedding) -> tuple[Tensor, Tensor]:
        method = self.config.method
        return supervised_similarity(
            a, b, self.settings.uncertainty, sss=method.sss, detach_uncertainty=method.detach_uncertainty
        )
