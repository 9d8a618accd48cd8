"""The losses of both steps; every one runs in float32, also under autocast.

May enter: tensors.
"""

from dusss_core.losses.contrastive import (
    Pairs,
    cross_modal_loss,
    info_nce,
    intra_modal_loss,
    same_sentence,
    temperature_scale,
)
from dusss_core.losses.schedules import Patience, cosine_lr, ema_alpha, sigmoid_rampup
from dusss_core.losses.segmentation import (
    merged_target,
    probabilities,
    pseudo_label_loss,
    semi_supervised_loss,
    supervised_loss,
)
from dusss_core.losses.similarity import (
    Embedding,
    Gaussian,
    cosine,
    saturation,
    saturation_warning,
    semantic_distance,
    sigma_regulariser,
    supervised_similarity,
    wasserstein2,
)
from dusss_core.losses.text_guided import masked_pool, text_guided_loss

__all__ = [
    "Embedding",
    "Gaussian",
    "Pairs",
    "Patience",
    "cosine",
    "cosine_lr",
    "cross_modal_loss",
    "ema_alpha",
    "info_nce",
    "intra_modal_loss",
    "masked_pool",
    "merged_target",
    "probabilities",
    "pseudo_label_loss",
    "same_sentence",
    "saturation",
    "saturation_warning",
    "semantic_distance",
    "semi_supervised_loss",
    "sigma_regulariser",
    "sigmoid_rampup",
    "supervised_loss",
    "supervised_similarity",
    "temperature_scale",
    "text_guided_loss",
    "wasserstein2",
]
