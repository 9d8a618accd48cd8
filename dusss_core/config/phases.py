"""How both steps are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dusss_core.config.base import LEAST_BATCH, Strict


class OptimizerConfig(Strict):
    """AdamW with a cosine schedule over the whole phase."""

    lr: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    min_lr_ratio: float = Field(0.05, ge=0, le=1)
    """The learning rate ends at `lr` times this. 1: constant."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the phase over which the learning rate rises linearly from 0."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decoupled weight decay."""
    clip_norm: float | None = Field(5.0, gt=0)
    """Largest L2 norm of the gradient of one step; null: no clipping."""


class PhaseConfig(Strict):
    """What both phases share."""

    rounds: int = Field(20, ge=0)
    """Federated rounds; one message to each site per round."""
    epochs: int = Field(1, ge=1)
    """Local passes over the site's training pictures per round."""
    steps: int | None = Field(None, ge=1)
    """Steps per round, at most, so that a round of many pictures is a share of a pass: each round draws its pictures
    anew. `patience` counts rounds, which are shorter then. null: all of the passes. Private training has
    `privacy.steps_per_round`."""
    batch: int = Field(32, ge=LEAST_BATCH)
    """Pictures per step."""
    labelled_share: float = Field(0.5, gt=0, lt=1)
    """Smallest share of each batch that is drawn from the labelled pictures, where a site has both kinds. Where more
    of its pictures are labelled than this, they keep their natural share."""
    strong: float = Field(1.0, ge=0, le=1)
    """Factor on the chance of each change in the strong view. Small pictures whose findings differ by a subtle look
    lose it to blur and noise: lower it there."""
    outside: Literal["black", "edge"] = "black"
    """What comes into a view that is moved out of the picture. black: as around an X-ray, or in a dark field. edge: the
    pixels of the picture's edge; for pictures that are bright to the edge (stained tissue, endoscopy), whose batch
    statistics in training do not fit the pictures themselves otherwise."""
    rampup: float = Field(0.2, ge=0, le=1)
    """Share of the phase over which the weight of pseudo-labels rises (sigmoid ramp-up) that a network gives to its own
    kind: the teacher's for pictures without a text-guided mask, and those of `method.grounding_consistency`."""
    optimizer: OptimizerConfig = OptimizerConfig()
    patience: int = Field(20, ge=1)
    """Early stopping: rounds without a better validation figure before the phase ends."""


class UncertaintyConfig(Strict):
    """Constants of the semantic-similarity supervision."""

    scale: float = Field(1.0, gt=0)
    """a of Eq. 2; the 2-Wasserstein distance is averaged over D, so it does not depend on the width."""
    offset: float = Field(0.1, ge=0)
    """b of Eq. 2."""
    constraint: float = Field(1.0, gt=0)
    """lambda of Eq. 4."""
    log_sigma_min: float = -6.0
    """log sigma is clamped to at least this."""
    log_sigma_max: float = 3.0
    """log sigma is clamped to at most this."""
    regulariser: float = Field(1e-3, ge=0)
    """Weight of the mean squared log sigma, against inflated uncertainty."""
    weight_ambiguity: float = Field(0.0, ge=0)
    """Weight of a loss that makes the 2-Wasserstein distance of a pair tell how many sentences fit about equally. The
    Gaussians then learn from it alone, and teach the embeddings nothing. Not in private training with public
    negatives. 0: the distance is what contrast makes of it (paper)."""
    ambiguity_power: float = Field(3.0, gt=0)
    """By how much an ambiguous pair's distance is raised over that of a plain one."""

    @model_validator(mode="after")
    def _from_below(self) -> UncertaintyConfig:
        if self.log_sigma_min > self.log_sigma_max:
            raise ValueError(f"log_sigma_min: {self.log_sigma_min:g} is above log_sigma_max: {self.log_sigma_max:g}")
        return self


class ZonesConfig(Strict):
    """Where in a picture lies what its sentences call upper, lower, left and right; for `method.pretraining: asg`.

    Public constants, measured once on masks of the training split (docs/method.md).
    """

    left: Literal["left", "right"] = "left"
    """The half of the picture that sentences call left: the picture's own, or the patient's."""
    upper_until: float = Field(0.4, gt=0, lt=1)
    """Where the upper zone ends and the middle one begins, as a share of the picture's height."""
    lower_from: float = Field(0.55, gt=0, lt=1)
    """Where the middle zone ends and the lower one begins."""

    @model_validator(mode="after")
    def _from_above(self) -> ZonesConfig:
        if self.upper_until >= self.lower_from:
            raise ValueError(f"upper_until: {self.upper_until:g} is not above lower_from: {self.lower_from:g}")
        return self


class PretrainConfig(PhaseConfig):
    """Step 1: vision-language pretraining."""

    rampup: float = Field(0.5, ge=0, le=1)
    """As for every phase; the grounding decoder starts from nothing."""
    uncertainty: UncertaintyConfig = UncertaintyConfig()
    temperature: float = Field(0.1, gt=0)
    """Start of the learned tau."""
    weight_cmc: float = Field(1.0, ge=0)
    """Weight of the cross-modal loss, Eq. 8."""
    weight_imc: float = Field(1.0, ge=0)
    """Weight of the intra-modal loss, Eq. 9."""
    weight_ltg: float = Field(1.0, ge=0)
    """Weight of the text-guided loss, Eq. 11."""
    weight_grounding: float = Field(20.0, ge=0)
    """Weight of the label supervision of the grounding decoder."""
    weight_consistency: float = Field(20.0, ge=0)
    """Weight of `method.grounding_consistency`."""
    zones: ZonesConfig = ZonesConfig()
    flip: bool = True
    """Left-right flips, with left and right exchanged in the sentence."""


class SegmentConfig(PhaseConfig):
    """Step 2: text-guided semi-supervised segmentation."""

    ema: float = Field(0.99, ge=0, lt=1)
    """Largest alpha of Eq. 12; alpha = min(1 - 1 / (step + 1), ema)."""
    weight_semi: float = Field(1.0, ge=0)
    """Weight of L_semi (Eq. 17). Text-guided masks are as good at the start as later: they are not ramped up."""
    guided_as_labelled: bool = True
    """A text-guided mask weighs as much in the loss as a true one: such pictures count (unlabelled / labelled pictures
    of the batch) times. Off: all unlabelled pictures together weigh as much as the labelled ones (paper); a few of
    those, seen often, then weigh much each. What the teacher alone labels always does so: it is wrong more often."""
    plain_share: float = Field(0.25, ge=0, le=1)
    """Of `method.judge_text`: steps of the plain student, as a share of all steps of the phase; made once, in a site's
    first round. 0: no plain student."""
    teacher_rampup: float = Field(1.0, ge=0, le=1)
    """Share of the phase over which the teacher comes into the merged target (sigmoid ramp-up): a teacher that has
    learnt little calls everything background, and its logits would outvote the text-guided mask. 0: at once (paper)."""
    dice: bool = True
    """Masks and pseudo-labels cost CE + Dice. Off: CE alone, Eq. 14 to 16."""
    confidence: float = Field(0.0, ge=0, lt=1)
    """Pixels whose pseudo-label confidence max(p, 1 - p) is below it carry no weight; 0: all pixels count."""
    flip: bool = True
    """Left-right flips of picture, mask and text-guided mask together."""
    turns: bool = False
    """Up-down flips and 90-degree turns too; only for pictures without an up (histology)."""
