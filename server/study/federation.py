"""The `federation` part of a study file: how the sites' models become one, and when a phase ends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from dusss_core.config import Strict
from feddusss.compression import CODECS, SHARE

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""As in a site's own file."""
MEANS = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi")
"""Strategies that use the weighted mean of the updates and nothing else of them."""


class FederationConfig(Strict):
    """How the sites' models become one, and when a phase ends."""

    strategy: Literal["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg", "krum"] = (
        "fedavg"
    )
    """fedavg: weighted mean. fedprox: the same, and sites are held near the global model by `mu`. fedavgm, fedadam,
    fedyogi: the mean update is a gradient for a server optimiser. fedmedian, fedtrimmedavg, krum: robust to sites
    that send garbage; unweighted."""
    mu: float = Field(0.01, gt=0)
    """fedprox: weight of half the squared distance from the round's global model."""
    server_lr: float = Field(1.0, gt=0)
    """fedavgm: server learning rate; fedadam, fedyogi: eta (0.01 is a usual value there)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """fedavgm: server momentum."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """fedadam, fedyogi: decay of the first moment."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """fedadam, fedyogi: decay of the second moment."""
    tau: float = Field(1e-3, gt=0)
    """fedadam, fedyogi: degree of adaptivity, added to the root of the second moment."""
    trim: float = Field(0.2, gt=0, lt=0.5)
    """fedtrimmedavg: share of the sites that is cut off at each end, for each number on its own."""
    byzantine: int = Field(0, ge=0)
    """krum: how many sites may be faulty; needs at least 2 * byzantine + 3 sites."""
    weighting: Literal["examples", "uniform"] = "examples"
    """A site's weight in the mean: its number of training pictures, or the same for all."""
    sizes: dict[str, int] | None = None
    """Training pictures of each site, as was agreed: a site counts with no more, in the mean, beside the sizes of the
    others' updates and in the choice of the best round, whatever it says that it has; a site that is not named takes no
    part. null: as many as it says."""
    max_share: float | None = Field(None, gt=0, lt=1)
    """Largest share that one site has in a mean, of updates and of validation figures; with n sites at least 1/n. null:
    its share of the pictures (docs/reliability.md says when to set it)."""
    min_sites: int = Field(1, ge=1)
    """A round with fewer accepted replies fails. In pretraining, sites without sentences send none that counts."""
    retries: int = Field(2, ge=0)
    """How often a round with too few answers asks those sites again that were lost (no answer, a crash). Answers that
    are there already are kept."""
    max_norm_ratio: float | None = Field(10, gt=1)
    """An update whose norm is more than this many times the median of the other sites' is refused (a site with more
    pictures than the others is given as many times more room). Needs three answers. null: not compared."""
    secure_aggregation: bool = False
    """The coordinator sees sums of the sites' updates, and no site's own; docs/secure_aggregation.md says what that
    promises. Goes with strategies that need the mean alone, and without `max_norm_ratio`."""
    secure_threshold: int | None = Field(None, ge=2)
    """secure_aggregation: fewest sites whose sum may be known; more than half of those that take part in a round. null:
    more than two thirds of the training sites."""
    wire: Literal["float32", "bfloat16", "int8", "topk"] = "float32"
    """How learned weights travel, both ways; bfloat16 halves the bytes and rounds by at most 0.2 %. int8: changes, in a
    quarter of the bytes. topk: changes, and of each tensor only the `topk_share` largest. What either loses is added to
    the next change. The coordinator's own model, its checkpoints and the final model stay float32. With
    secure_aggregation updates go up as 64-bit integers, and changes cannot be compressed."""
    topk_share: float = Field(SHARE, gt=0, le=0.5)
    """wire: topk: share of a tensor's numbers that travels; each takes the bytes of two."""
    select: Literal["best", "median", "last"] = "best"
    """Which round's model ends a phase: the best by validation (pictures weigh the same), the best by the median of the
    sites' figures (sites weigh the same, and of three or more none alone can move it past the others' figures), or the
    last. `patience` goes by the same figure."""
    keep_checkpoints: int = Field(3, ge=1)
    """Rounds of each phase whose checkpoints stay on disk, besides the best and the final model."""
    round_timeout_s: float = Field(3600, gt=0)
    """Sites that have not answered after this many seconds are left out of the round. While a site works for another
    study its time stands still, for as long again at most."""
    start_timeout_s: float = Field(600, gt=0)
    """How long to wait for the sites when a study starts, and when too few are connected for a round."""
    sites: list[str] | None = None
    """Names of the sites that may take part; the study starts when all are there. null: whoever is there."""

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_single_updates_are_not_seen(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("secure_aggregation") is True:
            return {"max_norm_ratio": None, **values}
        return values

    @model_validator(mode="after")
    def _sums_alone_are_enough(self) -> FederationConfig:
        if not self.secure_aggregation:
            return self
        if self.strategy not in MEANS:
            raise ValueError(
                f"secure_aggregation with strategy {self.strategy}, which compares the updates of single sites: choose "
                f"one that needs their mean alone ({', '.join(MEANS)}), or do without secure_aggregation"
            )
        if self.max_norm_ratio is not None:
            raise ValueError(
                "secure_aggregation with max_norm_ratio, which compares the sizes of single updates: set it to null, "
                "or do without secure_aggregation"
            )
        return self

    @model_validator(mode="after")
    def _shares_are_known_to_the_coordinator(self) -> FederationConfig:
        named = "max_share" if self.max_share is not None else "sizes" if self.sizes is not None else None
        if named and self.secure_aggregation and self.weighting == "examples":
            raise ValueError(
                f"secure_aggregation with {named}: each site weighs its update before it is masked, and nobody can "
                "weigh it anew: set weighting to uniform, or do without secure_aggregation"
            )
        if self.sizes is not None:
            if small := sorted(name for name, size in self.sizes.items() if size < 0):
                raise ValueError(f"sizes: {small[0]} is below 0")
            if missing := sorted(set(self.sites or ()) - self.sizes.keys()):
                raise ValueError(f"sizes: no number for {', '.join(missing)}, which federation.sites names")
        return self

    @model_validator(mode="after")
    def _sites_can_be_called_so(self) -> FederationConfig:
        for key, names in (("sites", self.sites), ("sizes", self.sizes)):
            if wrong := [name for name in names or () if not _NAME.fullmatch(name)]:
                raise ValueError(
                    f"{key}: {wrong[0]!r} is no name of a site (letters, figures and _ . - after the first)"
                )
        if self.sizes == {}:
            raise ValueError("sizes: names no site, and one that is not named takes no part; null: as many as they say")
        return self

    @model_validator(mode="after")
    def _compressed_changes_add_up(self) -> FederationConfig:
        if self.wire in CODECS and self.secure_aggregation:
            raise ValueError(
                f"wire: {self.wire} with secure_aggregation: masked numbers cannot be compressed, and the sites "
                "of a sum must be told of the very same bytes, which a site that missed a round is not: choose float32 "
                "or bfloat16, or do without secure_aggregation"
            )
        if self.wire == "topk" and self.strategy not in MEANS:
            raise ValueError(
                f"wire: topk with strategy {self.strategy}: most sites send nothing of most numbers, so that what is "
                f"usual among them is no change at all: choose int8, or a strategy that needs the mean alone "
                f"({', '.join(MEANS)})"
            )
        return self
