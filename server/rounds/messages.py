"""What goes to the sites, and how their answers are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dusss_core.files import digest_of_tensors
from dusss_core.phases import Phase
from feddusss import wire
from server.rounds.replies import MASKED, MISCOUNTED, Reply, read_reply
from server.rounds.roster import Roster, Site
from server.rounds.spool import Spool
from server.runs.events import Reporter
from server.runs.runfolder import CHARGES
from server.study.config import StudyConfig

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
    from torch import Tensor

    from server.runs.checkpoints import Checkpoint

_HELD_BYTES = 2**26
"""Of answers that are fetched together."""


class Messages:
    """The messages of one study.

    Args:
        run_key: names the run; the sites keep their private state by it.
        charges: how many charges of its privacy ledger each site has told of in this run. It is repeated to the site,
            which so finds out when its disk was set back to an older copy.
    """

    def __init__(self, study: StudyConfig, run_key: str, reporter: Reporter, charges: Mapping[str, int] | None = None):
        self._training_json = study.training().model_dump_json()
        self.run_key = run_key
        self._timeout = study.federation.round_timeout_s
        self._wire = study.federation.wire
        self._reporter = reporter
        self._charges = dict(charges or {})
        self._vlm: dict[str, Tensor] | None = None
        self._vlm_digest, self._vlm_round = "", 0

    def hold_vlm(self, final: Checkpoint) -> None:
        """From now on, give the final vision-language model to every site that does not have it."""
        self._vlm, self._vlm_digest, self._vlm_round = final.model, digest_of_tensors(final.model), final.round

    def query(self) -> RecordDict:
        """The message that asks a node who it is."""
        return self._content({}, what="train")

    def pack(self, model: Mapping[str, Tensor], what: str = "train") -> ArrayRecord:
        """The model as it goes to the sites."""
        # the final model is judged as it is
        rounded = self._wire == "bfloat16" and what != "test"
        return wire.pack(wire.rounded(model) if rounded else model)

    def ask(
        self,
        roster: Roster,
        kind: str,
        sites: list[Site],
        model: Mapping[str, Tensor],
        secure: Mapping[str, ConfigRecord] | None = None,
        spool: Spool | None = None,
        on_accepted: Callable[[Reply], Reply] | None = None,
        **settings: Any,
    ) -> tuple[dict[str, Reply], dict[str, int]]:
        """Send `model` to each site and read the answers, by site; also the bytes sent to each site.

        Args:
            secure: under secure aggregation: what each site needs to mask its answer.
            spool: where the tensors of the answers wait.
            on_accepted: told of each accepted answer as it comes; what it returns is kept.
        """
        arrays = self.pack(model, settings.get("what", "train"))
        # masked numbers cannot be rounded
        back = self._wire if secure is None else "float32"
        vlm = wire.pack(self._vlm) if self._vlm and any(self._lacks_vlm(site) for site in sites) else None
        contents, down = {}, {}
        for site in sites:
            records = {"arrays": arrays, **({"vlm": vlm} if self._lacks_vlm(site) else {})}
            seen = {"charges": self._charges[site.name]} if site.name in self._charges else {}
            contents[site.name] = self._content(records, wire=back, **seen, **settings)
            down[site.name] = sum(wire.size(record) for record in records.values())
            if secure is not None:
                contents[site.name]["secure"] = secure[site.name]
        expected = model if kind == "train" else None
        replies: dict[str, Reply] = {}

        def on_reply(name: str, message: Message | None) -> None:
            site = roster.sites[name]
            up = back if secure is None else MASKED
            reply = read_reply(name, message, expected, wire=up, most_examples=site.pictures, spool=spool)
            if reply.accepted and on_accepted is not None:
                reply = on_accepted(reply)
            replies[name] = reply
            if reply.accepted:
                site.vlm = self._vlm_digest or site.vlm
                if CHARGES in reply.metrics:
                    self._charges[name] = max(self._charges.get(name, 0), int(reply.metrics[CHARGES]))
                self._reporter.on_site_done(name, reply.metrics)
            else:
                site.vlm = ""
                self._reporter.on_site_refused(name, reply.reason)
                if reply.kind == MISCOUNTED:
                    roster.ask_again(name)

        at_once = _HELD_BYTES // wire.size(arrays) if expected is not None else len(sites)
        for name in roster.ask(kind, contents, self._timeout, on_reply, self._reporter.on_site_start, max(1, at_once)):
            on_reply(name, None)
        return {name: replies[name] for name in sorted(replies)}, down

    def step(self, record: ConfigRecord, phase: Phase, round: int) -> RecordDict:
        """A message of secure aggregation beside the one that trains."""
        return self._content({"secure": record}, what="train", phase=phase, round=round)

    def task(self, model: Mapping[str, Tensor], phase: Phase, weighting: str) -> str:
        """SHA-256 of all that the sites train on in a round, for `feddusss.secagg`."""
        from feddusss.secagg.records import task_digest

        return task_digest(
            training=hashlib.sha256(self._training_json.encode()).hexdigest(),
            phase=phase,
            vlm=self._vlm_digest,
            vlm_round=self._vlm_round,
            weighting=weighting,
            model=hashlib.sha256(wire.content(self.pack(model))).hexdigest(),
        )

    def _lacks_vlm(self, site: Site) -> bool:
        return self._vlm is not None and site.vlm != self._vlm_digest

    def _content(self, records: Mapping[str, ArrayRecord | ConfigRecord], **settings: Any) -> RecordDict:
        from flwr.app import ConfigRecord, RecordDict

        config = {
            "training": self._training_json,
            "run_key": self.run_key,
            "vlm_digest": self._vlm_digest,
            "vlm_round": self._vlm_round,
        }
        return RecordDict({**records, "config": ConfigRecord({**config, **settings})})
