"""The settings of a study that reach a hospital: pictures, method, networks, both training phases.

Typed, with unknown keys refused. Every field is documented where it is defined; the defaults are what measured
best, `preset: paper` is the paper to the letter. No file is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ObjectiveName = Literal[
    "dusss",
    "mean_teacher_mse",
    "mcnet",
    "mcnet_v1",
    "cct",
    "bcp",
    "ssnet",
    "ucmt",
    "fixmatch",
    "unimatch",
    "fedsemidg",
    "early_fusion",
    "supervised_with_text",
    "lvit",
    "lvit_balanced",
]
"""The methods of step 2, as `dusss_core.objectives` has them."""
TEXT_NETWORKS = ("early_fusion", "lvit", "vilt")
"""Students that can be given a sentence beside the picture."""
PretrainingName = Literal["dusss", "mgca", "cmitm", "asg"]
"""The methods of step 1, as `dusss_core.pretraining` has them."""
IMAGENET = "imagenet"
"""In place of a path: weights that an installed package holds."""
VLM = "vlm"
"""In place of a path: the image tower of step 1."""
AUTO = "auto"
"""Chosen at each site, by its device."""


DEVICE = r"^(auto|cpu|mps|cuda(:\d+)?)$"
"""What a device is called: auto is a GPU where there is one."""
LEAST_BATCH = 2
"""BatchNorm needs two pictures."""


class Strict(BaseModel):
    """Base of every settings class: unknown keys are errors, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, use_attribute_docstrings=True)


class ImageConfig(Strict):
    """How a picture becomes a tensor."""

    channels: Literal[1, 3] = 1
    """1: gray, 3: RGB. Pictures are converted."""
    size: int = Field(224, ge=32, multiple_of=16)
    """Height and width that the networks see, in pixels."""
    mode: Literal["resize", "tile"] = "resize"
    """resize: the whole picture is scaled to size x size. tile: pictures keep their scale; training cuts tiles of
    size x size, evaluation slides a window over the whole picture."""
    tile_overlap: float = Field(0.0, ge=0, le=0.75)
    """Overlap of neighbouring training tiles, as a share of `size`. At 0.75 each pixel is in 16 tiles."""
    mean: float = 0.5
    """Subtracted from intensities in [0, 1]. A public constant, never a statistic of a site's data."""
    std: float = Field(0.25, gt=0)
    """Intensities are divided by it. A public constant."""
    classes: int = Field(1, ge=1, le=254)
    """Foreground classes, as people count them: masks of 0, 1 and 2 have 2. 1: one sigmoid channel; more: a channel for
    the background, class 0, one for each class, and softmax."""
    names: list[Annotated[str, Field(min_length=1, max_length=64)]] = []
    """What the foreground classes are called, in order of their index, from 1; for people and for files that name what
    they hold. Empty: they have no names."""

    @property
    def outputs(self) -> int:
        """Channels of a mask's logits."""
        return 1 if self.classes == 1 else self.classes + 1

    @model_validator(mode="after")
    def _every_class_is_named_or_none(self) -> ImageConfig:
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"names: {len(self.names)} names for {self.classes} foreground classes")
        return self


class MethodConfig(Strict):
    """The switches of the method: every ablation is one of these, on one code path."""

    preset: Literal["dusss", "paper", "mean_teacher", "supervised", "clip"] = "dusss"
    """A named set of the switches below; keys that are given as well win over it."""
    objective: ObjectiveName = "dusss"
    """What the student learns from in step 2: a file of `dusss_core/objectives`. dusss: the method, and all that its
    switches below make of it; the others have no step 1, and none of these switches. early_fusion,
    supervised_with_text, lvit and lvit_balanced give the student sentences, in training and where it is used."""
    pretraining: PretrainingName = "dusss"
    """What the vision-language model learns from in step 1: a file of `dusss_core/pretraining`. Others than dusss have
    no `sss`, no `dcl`, no `negatives` beyond the batch; `ltg`, off there, can train the grounding decoder beside them.
    """
    sss: bool = True
    """Semantic-similarity supervision under uncertainty, Eq. 1 to 5. Off: plain cosine."""
    dcl: bool = True
    """Dual contrastive learning: the intra-modal losses of Eq. 9 join the cross-modal ones."""
    ltg: bool = True
    """The text-guided loss, Eq. 11."""
    text_mask: bool = True
    """Path 1: text-guided masks supervise the student. Off: no pretraining phase."""
    teacher: bool = True
    """Path 2: the mean teacher supervises the student."""
    grounding_supervision: bool = True
    """A site's labelled pictures also train the grounding decoder (CE + Dice). Not in the paper."""
    grounding_consistency: bool = True
    """The mask of picture and sentence also teaches the grounding decoder what to make of the picture's strong view
    and another wording; a true mask does where there is one. Not in the paper. Needs `grounding_supervision` and a site
    with masks; not done in private training."""
    detach_uncertainty: bool = True
    """No gradient of the contrastive losses through the uncertainty of Eq. 2 (see Eq. 18)."""
    negatives: Literal["site", "batch"] = "batch"
    """What a picture's sentence is told from in Eq. 6: all sentences of the site's training records, each as often as
    records have it (of more than 512 those of the batch, and others by chance), or those of the batch (paper). Those of
    the batch too with a text encoder that is trained, with other `pairs` than multi_positive, and in private training.
    """
    pairs: Literal["multi_positive", "masked", "identity"] = "multi_positive"
    """Pairs with the same sentence: positives of each other, left out of the negatives, or (paper) negatives."""
    merge: Literal["logits", "probabilities"] = "logits"
    """Eq. 15: sigmoid of the sum of logits, or (paper, literally) of the sum of probabilities."""
    merge_text_weight: float = Field(0.5, ge=0, le=1)
    """Weight of the text logits in the merged target, the teacher's is one minus it, both doubled, so that 0.5 is
    the plain sum of Eq. 15."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if isinstance(values, dict):
            preset = PRESETS.get(values.get("preset", "dusss"))
            if preset is not None:
                values = {**preset, **values}
            if values.get("objective", "dusss") != "dusss":
                values = {**_WITHOUT_TEXT, **values}
            if values.get("pretraining", "dusss") != "dusss":
                values = {**_WITHOUT_DUAL, **values}
        return values

    @model_validator(mode="after")
    def _switches_are_of_the_objective(self) -> MethodConfig:
        wrong = [name for name in _WITHOUT_TEXT if getattr(self, name)]
        if self.objective != "dusss" and wrong:
            raise ValueError(
                f"objective: {self.objective} has no {wrong[0]}, which is of objective: dusss: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _switches_are_of_the_pretraining(self) -> MethodConfig:
        if self.pretraining == "dusss":
            return self
        wrong = [name for name in ("sss", "dcl") if getattr(self, name)]
        wrong += ["negatives: site"] if self.negatives == "site" else []
        if wrong:
            raise ValueError(
                f"pretraining: {self.pretraining} has no {wrong[0]}, which is of pretraining: dusss: leave it out"
            )
        return self


_WITHOUT_TEXT = {"text_mask": False, "teacher": False}
"""Of an objective that is not `dusss`: it has no text-guided masks, and its teacher is its own affair."""

_WITHOUT_DUAL = {"sss": False, "dcl": False, "ltg": False}
"""Of a pretraining that is not `dusss`, where the study says nothing else."""

PRESETS: dict[str, dict[str, Any]] = {
    "dusss": {},
    "paper": {
        "grounding_supervision": False,
        "grounding_consistency": False,
        "detach_uncertainty": False,
        "pairs": "identity",
        "negatives": "batch",
    },
    "mean_teacher": {"text_mask": False},
    "supervised": {"text_mask": False, "teacher": False},
    "clip": {"sss": False, "dcl": False, "ltg": False},
}


class TextConfig(Strict):
    """The text encoder and the wordings that augment a sentence."""

    encoder: str = "minilm"
    """`minilm` (MiniLM-L6, from an installed package, checked by its sha256), or a BERT's local folder or hub name."""
    tuning: Literal["frozen", "lora", "full"] = "frozen"
    """frozen: each distinct sentence is encoded once and its token features are cached on the site's disk."""
    lora_rank: int = Field(8, ge=1, le=256)
    """Rank of the adapters for tuning: lora."""
    standardise: bool = True
    """Token features of a frozen encoder are standardised, by dimension, over made-up sentences that are the same at
    every site. Off: as the encoder has them (paper)."""
    pooling: Literal["mean", "query"] = "mean"
    """A sentence is the mean of its projected tokens, or what a learned query looks at."""
    max_tokens: int = Field(48, ge=4)
    """Sentences are cut to this many tokens."""
    views: int = Field(3, ge=1, le=64)
    """Augmented wordings per sentence (word dropout, clause order, synonyms) for the text side of Eq. 9."""


class VLMConfig(Strict):
    """The vision-language model of step 1."""

    image_encoder: str = "resnet18"
    """A timm model name that supports `features_only`."""
    weights: str | None = None
    """Public weights for the image encoder: the path of a safetensors file, or `imagenet` for those of
    tf_efficientnet_lite0 (from an installed package, checked by its sha256)."""
    patch_stride: Literal[4, 8, 16, 32] = 16
    """Pixels per patch: the coarsest feature map that is used."""
    dim: int = Field(128, ge=8, multiple_of=4)
    """D, the width of the joint embedding."""
    cells: int = Field(0, ge=0, le=32)
    """Cells along each side of a picture, whose features, one beside the other, are its semantic embedding: it then
    knows places, as sentences do; such as 7. 0: the projection of the mean of all patches, D wide (paper)."""
    cell_dim: int = Field(16, ge=1, le=256)
    """Numbers of a cell."""
    cells_read: float | None = Field(None, ge=0, le=1)
    """Cells are read off all feature maps of the encoder, and the grounding decoder does not see them. Encoder and text
    tower learn from what trains the cells with this factor on its gradient (0: nothing). null: cells are the patch
    features alone, teach these networks in full, and join the decoder."""
    decoder_width: int = Field(64, ge=8, multiple_of=4)
    """Channels of the grounding decoder."""
    skips: bool = True
    """The grounding decoder sees the encoder's finer feature maps too. Off: patch features alone (paper)."""
    cross_attention: bool = True
    """Patch features attend to the sentence's tokens before they are decoded. Off: the dot product alone (paper)."""
    mask_bias: float = -2.0
    """Logit of a text-guided mask that the grounding decoder starts from, everywhere: most pixels are background. Only
    masks (`method.grounding_supervision`) move it far. 0: sigmoid(t . v) of Eq. 10 at the start (paper)."""
    mirror: bool = True
    """A text-guided mask is the mean of the logits of the picture and of its mirror image with the mirrored sentence,
    where the sentence can be mirrored and `pretrain.flip` trains that. Off: of the picture alone (paper)."""
    text: TextConfig = TextConfig()


class StudentConfig(Strict):
    """The network that is deployed, and its twin the EMA teacher."""

    network: Literal["unet", "small_unet", "early_fusion", "lvit", "vilt"] = "unet"
    """unet: the paper's. small_unet: that of most published semi-supervised methods, 1.8 million parameters whatever
    `width` says, with dropout on the way down. early_fusion, lvit and vilt can be given a sentence beside the picture,
    by objectives that do so; it speaks of the whole picture, so it does not fit a tile (`image.mode: tile`)."""
    encoder: str | None = None
    """None: `network`. A timm model by name that supports `features_only`: it is the way down, with a decoder
    of its own on the way up; such as tf_efficientnet_lite0 with `weights: imagenet`."""
    width: int = Field(64, ge=4)
    """Channels at full resolution; 64 is the paper's 14,751,873 parameters at 3 -> 1 channels (without `encoder`). The
    tokens of vilt are 12 times as wide."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation layers."""
    mask_bias: float | None = None
    """Logit of the foreground that the head starts from, everywhere. null: as the layer is initialised, near one half
    (paper). AdamW moves a number by about the learning rate a step, so such a student may call too much foreground
    after a short training. There start near the share of foreground: -2 for an eighth."""
    weights: str | None = None
    """Public weights to start from: the path of a safetensors file, the student of a run on public or synthetic
    pictures; or `imagenet` for the encoder tf_efficientnet_lite0 (as `vlm.weights`). Or `vlm`: the encoder starts from
    the image tower of step 1, which is then trained for that if for nothing else; what lies deeper than the tower's
    patches starts as the tower did (`vlm.weights`)."""

    text_dropout: float = Field(0.0, ge=0, le=1)
    """Share of the training pictures whose sentence is withheld, of a student that is given sentences. At 0 (published)
    it has never seen a picture alone, and its figures without a sentence say so; 0.2 is fair to both; at 1 it gets
    none, in training."""
    text_tokens: int = Field(10, ge=1)
    """Tokens of a sentence that lvit reads (published: 10). The text encoder has seen all of them."""
    layers: int = Field(12, ge=1)
    """Transformer blocks of vilt."""
    patch: Literal[16, 32] = 32
    """Pixels per patch of vilt."""

    @property
    def kind(self) -> Literal["unet", "small_unet", "early_fusion", "lvit", "vilt", "encoder"]:
        """What is built: `network`, or a student with an `encoder`."""
        return self.network if self.encoder is None else "encoder"

    @model_validator(mode="after")
    def _one_network(self) -> StudentConfig:
        if self.network != "unet" and self.encoder is not None:
            raise ValueError(f"network: {self.network} with encoder: {self.encoder}: choose one of the two")
        return self

    @model_validator(mode="after")
    def _imagenet_is_of_an_encoder(self) -> StudentConfig:
        if self.weights == IMAGENET and self.encoder is None:
            raise ValueError("weights: imagenet is for an encoder: set encoder: tf_efficientnet_lite0")
        if self.weights == VLM and self.encoder is None:
            raise ValueError("weights: vlm is for an encoder: set encoder to the network of vlm.image_encoder")
        return self


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


class RuntimeConfig(Strict):
    """How the machine is used; changes no result beyond rounding. `runtime: auto` is `auto` for each: every site
    chooses by its own device (`dusss_core/runtime.py` says how)."""

    amp: Literal[True, False, "auto"] = False
    """bfloat16 autocast; losses stay in float32. auto: on CUDA, and on a CPU with instructions for bfloat16 in a phase
    in which it was measured to be faster."""
    channels_last: Literal[True, False, "auto"] = False
    """channels_last memory format. auto: on CUDA and on a CPU."""
    eval_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Pictures per batch at evaluation. auto: on a CPU as many as fit its caches (2 of 224 x 224), elsewhere 64."""

    @model_validator(mode="before")
    @classmethod
    def _all_by_the_device(cls, values: Any) -> Any:
        return dict.fromkeys(cls.model_fields, AUTO) if values == AUTO else values


class PersonalConfig(Strict):
    """What of the student is a site's own (step 2 alone): it is trained there, kept there, and never sent. `personal:
    ditto` is short for `personal: {kind: ditto}`. docs/method.md has the equations."""

    kind: Literal["none", "ditto", "fedrep", "apfl", "finetune"] = "none"
    """none: the one global student. ditto: a student of the site's own beside it, held near it. fedrep: the student's
    head is the site's own, the rest is global. apfl: a mixture of a student of the site's own and the global one.
    finetune: after the last round each site trains the final student on, and keeps what comes of it."""
    weight: float = Field(0.1, ge=0)
    """ditto: lambda, the weight of half the squared distance from the round's global student. 0: training alone."""
    head: Literal["output", "decoder", "none"] = "output"
    """fedrep: what stays at the site. output: the last layer, that of each decoder. decoder: the way up too. none:
    nothing, plain federation."""
    head_share: float = Field(0.2, gt=0, lt=1)
    """fedrep: share of a round's steps, its first ones, in which the head alone is trained; in the others all the rest
    is. Of two steps or more each gets one at least."""
    alpha: float = Field(0.5, ge=0, le=1)
    """apfl: share of the site's own student in the mixture. 0: the global student, 1: training alone."""
    learn_alpha: bool = False
    """apfl: `alpha` is where the site starts from, and each step moves it down the gradient of the loss."""
    alpha_lr: float = Field(0.01, gt=0)
    """apfl: learning rate of alpha."""
    steps: int = Field(50, ge=0)
    """finetune: steps of each site on the final student, but no more than its own file allows in a round
    (`limits.max_epochs_per_round`, `limits.max_steps_per_round`). 0: the final student as it is."""
    lr_ratio: float = Field(0.1, gt=0, le=1)
    """finetune: peak learning rate, as a share of `segment.optimizer.lr`."""

    @model_validator(mode="before")
    @classmethod
    def _a_kind_alone(cls, values: Any) -> Any:
        return {"kind": values} if isinstance(values, str) else values

    @property
    def beside(self) -> bool:
        """Whether a second student is trained beside the global one, in as many steps."""
        return self.kind in ("ditto", "apfl")

    @property
    def own_head(self) -> Literal["output", "decoder", "none"]:
        """What of the student's network does not travel."""
        return self.head if self.kind == "fedrep" else "none"


class PrivateTrainingConfig(Strict):
    """How a site trains that asks for differential privacy in its own file; other sites ignore it.

    Every value is public. What it costs follows from it alone; whether a site can afford that is the site's to say.
    """

    noise_multiplier: float = Field(1.0, gt=0)
    """Standard deviation of the noise in a step's sum, over `clip`."""
    clip: float = Field(1.0, ge=1e-6, le=1e6)
    """C: largest L2 norm of one record's gradient. Bounded, since float32 does not clip exactly at its own limits."""
    sample_rate: float = Field(0.05, gt=0, le=1)
    """q of the Poisson draw: probability that a record takes part in a step."""
    steps_per_round: int = Field(20, ge=1)
    """Steps per round, in either phase."""
    views: int = Field(1, ge=1, le=64)
    """Augmented views of a record, whose gradients are averaged before they are clipped. Costs time, no privacy."""
    pretrain: Literal["public_negatives", "groups", "off"] = "public_negatives"
    """What keeps records apart in step 1: contrast with public captions and pictures (sensitivity C), or groups drawn
    at random (2 C); off: the site takes no part in step 1."""
    groups: int = Field(16, ge=2)
    """Groups of a step, for `pretrain: groups`."""
    student: Literal["all", "decoder", "norms", "head"] = "all"
    """What is trained of the student: all of it; the way up and the head; GroupNorm layers and the head; or the head,
    which with `student.encoder` is a linear classifier of pixels on the features of all levels. The
    noise in a step's sum grows with the root of the number of parameters, so few are better where the rest is good
    already (`student.weights`)."""
    keep_features: bool = False
    """For `student: head`, with labels alone (`method.preset: supervised`): what the frozen part makes of a record is
    computed once and kept, about 0.4 MB for a view of 112 x 112 with tf_efficientnet_lite0; a step is then some six
    times faster. A record has the same `views` in every step. Costs no privacy: features are the record's own."""
    freeze_encoder: bool = False
    """Leave the image encoder of step 1 as it came. For public weights (`vlm.weights`)."""


class TrainingConfig(Strict):
    """Everything that a site needs to take part in a study. Sent with every message; checked again at the site."""

    study: str = Field("study", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """Name; the site's private state is keyed by it."""
    seed: int = 1
    """All randomness derives from (seed, site, phase, round)."""
    image: ImageConfig = ImageConfig()
    method: MethodConfig = MethodConfig()
    vlm: VLMConfig = VLMConfig()
    student: StudentConfig = StudentConfig()
    pretrain: PretrainConfig = PretrainConfig()
    segment: SegmentConfig = SegmentConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    privacy: PrivateTrainingConfig = PrivateTrainingConfig()
    local_norm: bool = False
    """FedBN: normalisation layers stay at the site."""
    personal: PersonalConfig = PersonalConfig()
    """What else of the student is a site's own."""
    prox_mu: float = Field(0.0, ge=0)
    """FedProx: weight of half the squared distance from the round's global model; set by `federation.strategy`."""

    @model_validator(mode="after")
    def _patches_fill_the_picture(self) -> TrainingConfig:
        if self.student.kind == "vilt" and self.image.size % self.student.patch:
            raise ValueError(
                f"student.patch: {self.student.patch} does not divide image.size: {self.image.size}: use patch: 16, or "
                "another size"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _paper_reaches_beyond_the_method(cls, values: Any) -> Any:
        """`method: {preset: paper}` means the paper's grounding decoder and supervised loss as well."""
        if not isinstance(values, dict):
            return values
        method = values.get("method")
        if isinstance(method, dict) and method.get("preset") == "paper":
            for section, literal in PAPER_BEYOND_METHOD.items():
                given = values.get(section, {})
                if isinstance(given, dict):
                    values = {**values, section: merged(literal, given)}
        return values


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` key by key, at any depth."""
    inner = {
        key: merged(values[key], change)
        for key, change in changes.items()
        if isinstance(change, Mapping) and isinstance(values.get(key), Mapping)
    }
    return {**values, **changes, **inner}


PAPER_BEYOND_METHOD: dict[str, dict[str, Any]] = {
    "vlm": {
        "skips": False,
        "cross_attention": False,
        "mirror": False,
        "mask_bias": 0.0,
        "cells": 0,
        "text": {"standardise": False, "pooling": "query"},
    },
    "student": {"mask_bias": None},
    "segment": {"dice": False, "guided_as_labelled": False, "teacher_rampup": 0.0},
}
