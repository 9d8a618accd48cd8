"""What goes to the sites, and how their answers are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dusss_core.files import digest_of_tensors
from dusss_core.phases import Phase
from feddusss import compression, wire
from server.rounds.charges import Charges
from server.rounds.heads import Heads
from server.rounds.reference import Reference
from server.rounds.replies import LACKS, MASKED, MISCOUNTED, Reply, read_reply
from server.rounds.roster import Roster, Site
from server.rounds.spool import Spool
from server.runs.events import Reporter
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
        heads: what sites tell of their audit logs; None: it is kept in memory alone.
        charges: how many charges of its privacy ledger each site has told of; None: it is kept in memory alone.
        partners: each hospital and the fingerprint of its key, which every one of them is told.
    """

    def __init__(
        self,
        study: StudyConfig,
        run_key: str,
        reporter: Reporter,
        charges: Charges | None = None,
        heads: Heads | None = None,
        partners: Mapping[str, str] | None = None,
    ):
        self._training_json = study.training().model_dump_json()
        self._terms_json = study.terms(partners or {}).model_dump_json()
        self.run_key = run_key
        self._timeout = study.federation.round_timeout_s
        self._wire = study.federation.wire
        self._codec = compression.codec(self._wire, study.federation.topk_share)
        self._reference = Reference(self._codec) if self._codec is not None else None
        self._reporter = reporter
        self._charges = charges or Charges()
        self._heads = heads or Heads()
        self._layers: Mapping[str, Tensor] = {}
        self._vlm: dict[str, Tensor] | None = None
        self._vlm_digest, self._vlm_round = "", 0

    def hold_vlm(self, final: Checkpoint) -> None:
        """From now on, give the final vision-language model to every site that does not have it."""
        self._vlm, self._vlm_digest, self._vlm_round = final.model, digest_of_tensors(final.model), final.round

    def hold_layers(self, layers: Mapping[str, Tensor]) -> None:
        """From now on, give every site what it starts from of what then stays there (`Start.layers`): whoever has lost
        its own, or comes late, starts from it too."""
        self._layers = layers

    def resume(self, reference: Mapping[str, Tensor]) -> None:
        """Begin a phase, or go on with one: from what the sites held after its last round (`reference`)."""
        if self._reference is not None:
            self._reference.resume(reference)

    @property
    def reference(self) -> dict[str, Tensor]:
        """What the sites hold, where changes travel compressed; to be kept with the round. Else empty."""
        return self._reference.tensors if self._reference is not None else {}

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
        what = settings.get("what", "train")
        reference = self._reference if what != "test" else None
        if reference is not None:
            reference.bring_to(settings["phase"], settings["round"], model)
        arrays = self.pack(model, what) if reference is None else None
        codec = self._codec if kind == "train" else None
        # masked numbers cannot be rounded
        back = self._wire if secure is None else "float32"
        layers = {"layers": wire.pack(self._layers)} if self._layers else {}
        vlm = wire.pack(self._vlm) if self._vlm and any(self._lacks_vlm(site) for site in sites) else None
        contents, down, changes = {}, {}, set()
        for site in sites:
            record, about = arrays, {}
            if reference is not None:
                record, about = self._referred(reference, site, kind)
            if "base" in about:
                changes.add(site.name)
            records = {"arrays": record, **layers, **({"vlm": vlm} if self._lacks_vlm(site) else {})}
            contents[site.name] = self._content(records, wire=back, **about, **settings)
            contents[site.name]["config"].update(self._heads.seen(site.name) | self._charges.seen(site.name))
            down[site.name] = sum(wire.size(record) for record in records.values())
            if secure is not None:
                contents[site.name]["secure"] = secure[site.name]
        expected = model if kind == "train" else None
        replies: dict[str, Reply] = {}

        def on_reply(name: str, message: Message | None, silent: str = "") -> None:
            site = roster.sites[name]
            self._heads.note(name, message, {"kind": kind, **{k: settings.get(k) for k in ("phase", "round")}})
            self._charges.note(name, message)
            up = back if secure is None else MASKED
            reply = read_reply(
                name,
                message,
                expected,
                wire=up,
                compressed=codec,
                most_examples=site.pictures,
                counts=site.counts,
                spool=spool,
                silent=silent,
            )
            if reply.accepted and on_accepted is not None:
                reply = on_accepted(reply)
            replies[name] = reply
            if reply.kind == LACKS and name in changes:
                site.reference = ""  # it is sent the whole model below
                return
            if reply.accepted:
                if reference is not None and kind == "train":
                    site.reference = reference.digest
                site.vlm = self._vlm_digest or site.vlm
                self._reporter.on_site_done(name, reply.metrics)
            else:
                site.vlm = ""
                self._reporter.on_site_refused(name, reply.reason)
                if reply.kind == MISCOUNTED:
                    roster.ask_again(name)

        largest = sum(tensor.nbytes for tensor in model.values()) if expected is not None else 1
        at_once = max(1, _HELD_BYTES // max(1, largest))
        reporter = self._reporter
        silent = roster.ask(
            kind, contents, self._timeout, on_reply, reporter.on_site_start, at_once, reporter.on_site_busy
        )
        for name, why in silent.items():
            on_reply(name, None, why)
        if lacking := [site for site in sites if site.name in changes and replies[site.name].kind == LACKS]:
            again, more = self.ask(roster, kind, lacking, model, secure, spool, on_accepted, **settings)
            replies |= again
            down = {name: size + more.get(name, 0) for name, size in down.items()}
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
            layers=hashlib.sha256(wire.content(wire.pack(self._layers))).hexdigest() if self._layers else "",
        )

    def _referred(self, reference: Reference, site: Site, kind: str) -> tuple[ArrayRecord, dict[str, Any]]:
        """What brings a site to the model that all are to hold, and what the message says of it.

        The whole model in the first round of a phase, for a site that is known to lack the one before (it missed a
        round), and where nothing is trained. A site of which that is not known may say that it lacks it.
        """
        about = {"model_digest": reference.digest, "topk_share": self._codec.share}
        if kind == "train" and reference.base and site.reference in (None, reference.base):
            return reference.change, {**about, "base": reference.base}
        return reference.whole, about

    def _lacks_vlm(self, site: Site) -> bool:
        return self._vlm is not None and site.vlm != self._vlm_digest

    def _content(self, records: Mapping[str, ArrayRecord | ConfigRecord], **settings: Any) -> RecordDict:
        from flwr.app import ConfigRecord, RecordDict

        config = {
            "training": self._training_json,
            "terms": self._terms_json,
            "run_key": self.run_key,
            "vlm_digest": self._vlm_digest,
            "vlm_round": self._vlm_round,
        }
        return RecordDict({**records, "config": ConfigRecord({**config, **settings})})
