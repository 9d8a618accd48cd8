"""What a student's file says of itself, in its header."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from dusss_core.config import (
    TEXT_NETWORKS,
    ImageConfig,
    MethodConfig,
    ObjectiveName,
    Strict,
    StudentConfig,
    TextConfig,
    TrainingConfig,
)
from dusss_core.config.base import STUDY_NAME

Layers = Literal["shared", "site", "fitted", "initial", "unfitted"]
"""Whose normalisation layers a student has: the sites' mean; one site's own; fitted to pictures of whoever uses it. Of
a study with `local_norm`, for outsiders, nobody's: as the study starts from, to be used as they are (initial), or to be
fitted first where they have statistics (unfitted)."""


class About(Strict):
    """All that it takes to use a student, but for its weights."""

    format: Literal[1] = 1
    """Of this header."""
    study: str = Field(pattern=STUDY_NAME)
    """Name of the study that trained it."""
    study_digest: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the study's settings; `config_digest` of its summary.json."""
    round: int = Field(0, ge=0)
    """The round that made it."""
    objective: str = Field("dusss", max_length=64)
    """What it learnt from (`method.objective`; of `dusss` without text-guided masks mean_teacher or supervised)."""
    image: ImageConfig
    """How a picture becomes its input, and its classes."""
    network: StudentConfig
    """What it is built of."""
    text: TextConfig | None = None
    """Of a network that can be given a sentence: whose features it takes."""
    layers: Layers
    """Whose normalisation layers it has."""
    site: str | None = Field(None, max_length=64)
    """The site whose layers or head (`personal: fedrep`) these are; a site's own file, which never leaves it by itself.
    """
    personal: Literal["none", "ditto", "apfl", "finetune"] = "none"
    """A student that the site has beside the one that all trained (`personal` of the study): how it was made."""
    fitted_on: int | None = Field(None, ge=1)
    """Pictures that its statistics were fitted on."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """One class: probability above which a pixel is foreground. Several: the most probable class counts."""
    tensors: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the weights (`dusss_core.files.digest_of_tensors`)."""

    @property
    def names(self) -> list[str]:
        """Of the classes, the background first."""
        number = self.image.classes
        given = self.image.names or ([f"class {i + 1}" for i in range(number)] if number > 1 else ["foreground"])
        return ["background", *given]

    @property
    def hears(self) -> bool:
        """Whether its network was trained with sentences, as far as this release knows its objective, and can be given
        one."""
        if self.text is None or self.objective not in get_args(ObjectiveName):
            return False
        from dusss_core.objectives import reads_sentences

        return reads_sentences(self.config().model_copy(update={"method": MethodConfig(objective=self.objective)}))

    def config(self) -> TrainingConfig:
        """Settings that build its network."""
        more = {} if self.text is None else {"vlm": {"text": self.text}}
        return TrainingConfig(study=self.study, image=self.image, student=self.network, **more)

    @classmethod
    def of(cls, config: TrainingConfig, **more) -> About:
        """What the settings of a study say of its student."""
        return cls(
            study=config.study,
            objective=_learnt_from(config.method),
            image=config.image,
            # public weights are where it started from, and its file has its own
            network=config.student.model_copy(update={"weights": None, "mask_bias": None}),
            text=config.vlm.text if config.student.kind in TEXT_NETWORKS else None,
            **more,
        )


def _learnt_from(method: MethodConfig) -> str:
    """Without text-guided masks a study of `dusss` has no vision-language model that its student would go with."""
    if method.objective != "dusss" or method.text_mask:
        return method.objective
    return "mean_teacher" if method.teacher else "supervised"
