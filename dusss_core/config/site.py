"""What a study asks of training at a site beside method and schedule: the machine, a student of its own, noise."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dusss_core.config.base import AUTO, Strict


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
    labels_too: bool = False
    """finetune: a second student goes as many steps from the final one on the labelled pictures alone, and the site
    keeps the one that is better on its validation pictures. It costs that many steps more, which count in what the
    site's file allows. Without such pictures, or where the network cannot learn from labels alone, the first stays."""

    @model_validator(mode="before")
    @classmethod
    def _a_kind_alone(cls, values: Any) -> Any:
        return {"kind": values} if isinstance(values, str) else values

    @property
    def beside(self) -> bool:
        """Whether a second student is trained beside the global one, in as many steps: `BESIDE` of
        `dusss_core.training.personal` has its class."""
        return self.kind not in ("none", "fedrep", "finetune")

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
