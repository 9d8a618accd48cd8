"""What is learnt: the switches of both steps, and their presets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dusss_core.config.base import Strict

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
PretrainingName = Literal["dusss", "mgca", "cmitm", "asg"]
"""The methods of step 1, as `dusss_core.pretraining` has them."""


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
    judge_text: bool = True
    """Where text-guided masks lose on a site's validation pictures against the teacher, the global student, or a plain
    student that learns from the site's masks alone, they weigh less there, down to nothing. Not in the paper. A site
    without such pictures lets them weigh in full; one with differential privacy too, since its pictures for validation
    are not paid for."""
    merge: Literal["logits", "probabilities"] = "logits"
    """Eq. 15: sigmoid of the sum of logits, or (paper, literally) of the sum of probabilities."""
    merge_text_weight: float = Field(0.5, ge=0, le=1)
    """Weight of the text logits in the merged target, the teacher's is one minus it, both doubled, so that 0.5 is
    the plain sum of Eq. 15."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if isinstance(values, dict):
            preset = values.get("preset", "dusss")
            if isinstance(preset, str):  # what else stands there is told as any value that is none of the known
                values = {**PRESETS.get(preset, {}), **values}
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
        "judge_text": False,
        "detach_uncertainty": False,
        "pairs": "identity",
        "negatives": "batch",
    },
    "mean_teacher": {"text_mask": False},
    "supervised": {"text_mask": False, "teacher": False},
    "clip": {"sss": False, "dcl": False, "ltg": False},
}
