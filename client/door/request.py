"""What passes the door inwards: a request as it was read, and a judged one, which is all that work ever sees."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.state.store import SiteState
from dusss_core.config import TrainingConfig
from dusss_core.phases import Phase
from feddusss.compression import Codec
from sites.config import SiteConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Step:
    """The message's part in secure aggregation."""

    name: str
    """keys, deal, train, vote or reveal."""
    attempt: str
    body: Any
    """Not parsed: `client.secure` knows what a step should hold."""
    weighting: str
    """examples or uniform."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The settings of one message, of the right form each; whether the site allows them is another question."""

    kind: str
    """query, train or evaluate."""
    training: TrainingConfig
    training_digest: str
    run_key: str
    """Names the run; the site's private state is kept by it."""
    phase: Phase = Phase.SEGMENT
    round: int = 1
    """The round to train; for `what: test` the round that made the model."""
    vlm_digest: str = ""
    """SHA-256 of the final vision-language model; empty before there is one."""
    vlm_round: int = 0
    """The round of pretraining that made it."""
    what: str = "train"
    """train, val (validate the model) or test (evaluate the final student)."""
    wire: str = "float32"
    """Type in which learned weights come and are wanted back; see `feddusss.wire` and `feddusss.compression`."""
    codec: Codec | None = None
    """How changes are encoded under `wire`; None: they are not."""
    base: str = ""
    """Digest of the model that the message's tensors are a compressed change of; empty: they are the model."""
    model_digest: str = ""
    """Digest of the model itself, under a wire that compresses."""
    charges: int = 0
    """How many charges of this site's privacy ledger the coordinator has seen."""
    study_digest: str = ""
    """With `what: test`: SHA-256 of the study's settings, for the student's file."""
    terms: str = ""
    """`feddusss.terms` as JSON, not yet parsed: read where this site lets a person approve each study."""
    audit_head: str = ""
    """The newest hash of a line of this site's audit log that the coordinator has kept; empty: none."""
    step: Step | None = None
    """None: no secure aggregation."""


@dataclass(frozen=True)
class Allowed:
    """What of a site's limits can be looked at only while a message is worked on."""

    max_steps: int | None
    """Optimizer steps per round, at most; None: no limit."""
    still: Callable[[], None]
    """To be called after each step: raises `Declined` when the site's hours are over."""
    fine_tuning: Callable[[], None]
    """To be called before the final student is trained on here (`personal: finetune`): raises `Declined` where the site
    does not train so now."""
    language: Callable[[], None]
    """To be called before the text encoder is read or a vision-language model built: raises `Declined` where the site
    does not allow them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged(Request):
    """A request that the site's own file allows, with all that came along. Made by `client.door.entrance` alone."""

    site: SiteConfig
    site_file: Path
    state: SiteState
    """The site's private state of the run that the message belongs to."""
    allowed: Allowed
    model: dict[str, Tensor] | None
    """The shared tensors of the message, rounded ones as float32, compressed ones as what they stand for."""
    model_sha256: str
    """Of their bytes as they came; empty outside of secure aggregation."""
    layers: dict[str, Tensor] | None
    """What the study starts from of what stays at the site; None: the site draws that itself."""
    layers_sha256: str
    """As `model_sha256`; empty without any."""
    vlm: dict[str, Tensor] | None
    """The final vision-language model, where the coordinator thinks that the site does not have it; empty once it is
    kept."""
    disk: Executor
    """Writes to the site's disk beside the rest of the work."""
    writes: list[Future] = field(default_factory=list)
    """What `disk` was given: `client.door.exit.settle` waits for it."""
