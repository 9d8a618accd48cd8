"""What a picture is to the networks, and what these are built of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dusss_core.config.base import IMAGENET, LONGEST_NAME, LONGEST_PATH, VLM, Strict

TEXT_NETWORKS = ("early_fusion", "lvit", "vilt")
"""Students that can be given a sentence beside the picture."""


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
    names: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(default_factory=list)
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


class TextConfig(Strict):
    """The text encoder and the wordings that augment a sentence."""

    encoder: str = Field("minilm", min_length=1, max_length=LONGEST_PATH)
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

    image_encoder: str = Field("resnet18", min_length=1, max_length=LONGEST_NAME)
    """A timm model name that supports `features_only`."""
    weights: str | None = Field(None, min_length=1, max_length=LONGEST_PATH)
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
    encoder: str | None = Field(None, min_length=1, max_length=LONGEST_NAME)
    """None: `network`. A timm model by name that supports `features_only`: it is the way down, with a decoder
    of its own on the way up; such as tf_efficientnet_lite0 with `weights: imagenet`."""
    width: int = Field(64, ge=4)
    """Channels at full resolution; 64 is the paper's 14,751,873 parameters at 3 -> 1 channels (without `encoder`). The
    tokens of vilt are 12 times as wide."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation layers."""
    hidden: int = Field(0, ge=0, le=256)
    """Hidden units of the head of a student with `encoder`; 0: its head is linear. For private training of the head
    alone (`privacy.student: head`): some 16, which with tf_efficientnet_lite0 are 8,000 more parameters."""
    mask_bias: float | None = None
    """Logit of the foreground that the head starts from, everywhere. null: as the layer is initialised, near one half
    (paper). AdamW moves a number by about the learning rate a step, so such a student may call too much foreground
    after a short training. There start near the share of foreground: -2 for an eighth."""
    weights: str | None = Field(None, min_length=1, max_length=LONGEST_PATH)
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
    def _hidden_units_are_of_an_encoder(self) -> StudentConfig:
        if self.hidden and self.encoder is None:
            raise ValueError(f"hidden: {self.hidden} is for a student with an encoder: set encoder, or hidden: 0")
        return self

    @model_validator(mode="after")
    def _imagenet_is_of_an_encoder(self) -> StudentConfig:
        if self.weights == IMAGENET and self.encoder is None:
            raise ValueError("weights: imagenet is for an encoder: set encoder: tf_efficientnet_lite0")
        if self.weights == VLM and self.encoder is None:
            raise ValueError("weights: vlm is for an encoder: set encoder to the network of vlm.image_encoder")
        return self
