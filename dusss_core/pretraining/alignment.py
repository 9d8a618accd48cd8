"""What the published methods of step 1 have in common: InfoNCE between pictures and sentences at a fixed temperature.

    L = InfoNCE(picture -> sentence) + InfoNCE(sentence -> picture),   tau = 0.07

That is the cross-modal loss of `preset: clip`, twice (there it is the mean of both), with a tau that is not learned.
Sentences that are equal are positives of each other (`method.pairs`): with one sentence a picture most negatives would
else be false.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dusss_core.losses.contrastive import cross_modal_loss, same_sentence
from dusss_core.losses.similarity import Embedding, cosine
from dusss_core.pretraining.method import PretrainingMethod, Seen

TEMPERATURE = 0.07


class Alignment(PretrainingMethod):
    """Plain cosine, and its contrast within the batch. What else records teach each other is the subclass'."""

    coupled = True  # public negatives would have to be found for every further loss of it

    def similarity(self, a: Embedding, b: Embedding) -> Tensor:
        """The cosine."""
        return cosine(a.semantic, b.semantic)

    def instance(self, image: Embedding, seen: Seen) -> Tensor:
        """The loss above, of `image` and the batch's sentences."""
        return instance_loss(self.similarity(image, seen.text), seen.identity, self.config.method.pairs)


def instance_loss(similarity: Tensor, identity: Tensor, pairs: str) -> Tensor:
    """InfoNCE both ways, summed: a scalar; 2 ln B where all pairs are equally near and all sentences differ.

    Args:
        similarity: B x B, pictures by sentences.
        identity: B int64, equal where records have the same words.
    """
    log_scale = torch.full((), -math.log(TEMPERATURE), device=similarity.device)
    return 2 * cross_modal_loss(similarity, same_sentence(identity, identity), log_scale, pairs)
