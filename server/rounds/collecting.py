"""The answers of a round: who is asked, who is asked again, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dusss_core.phases import Phase
from server.rounds.aggregation import SiteModel, sites_needed
from server.rounds.messages import Messages
from server.rounds.replies import LOST, Reply
from server.rounds.roster import Roster
from server.rounds.screening import NEEDED, too_large, too_strong
from server.rounds.spool import Spool
from server.runs.events import Reporter
from server.runs.runfolder import log
from server.study.config import StudyConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Collected:
    """What a round gave."""

    replies: dict[str, Reply]
    """By site, sorted."""
    down: dict[str, int]
    """Bytes sent to each site."""
    models: dict[str, SiteModel]
    """What is to be aggregated: the accepted answers, or under secure aggregation their mean alone."""
    lost: bool = False
    """The sites have given their parts, and the sum can be had no more: the round leaves the model as it was."""


class Collector:
    """Collects the answers of one study's rounds.

    Args:
        say: told what a person should know.
    """

    def __init__(
        self,
        study: StudyConfig,
        roster: Roster,
        messages: Messages,
        reporter: Reporter,
        say: Callable[[str], None],
    ):
        self._study = study
        self._federation = study.federation
        self._roster = roster
        self._messages = messages
        self._reporter = reporter
        self._say = say
        self._told_unscreened = False

    def collect(
        self,
        phase: Phase,
        round: int,
        rounds: int,
        model: Mapping[str, Tensor],
        abstaining: dict[str, str],
        spool: Spool,
    ) -> Collected:
        """The answers of a round, screened. While there are too few, sites that were lost are asked again.

        Args:
            spool: where the answers wait until the round's model is made.
        """
        federation, needed = self._federation, sites_needed(self._federation)
        replies: dict[str, Reply] = {}
        down: dict[str, int] = {}
        self._roster.refresh()
        for attempt in range(1 + federation.retries):
            accepted = [name for name, reply in replies.items() if reply.accepted]
            open_sites = self._open_sites(replies, abstaining)
            if attempt:
                if len(accepted) + self._number_of(open_sites) < needed:
                    break
                self._say(f"{phase} round {round}: too few answers; asking again those that were lost")
            self._roster.wait_for(max(1, needed - len(accepted)), federation.start_timeout_s, open_sites)
            sites = [s for s in self._roster.training() if s.name in self._open_sites(replies, abstaining)]
            self._reporter.on_round_start(phase, round, rounds, [*accepted, *(site.name for site in sites)])
            answered, sent = self._messages.ask(
                self._roster, "train", sites, model, spool=spool, phase=phase, round=round
            )
            replies |= answered
            down = {name: down.get(name, 0) + sent.get(name, 0) for name in replies}
            self._screen(replies)
            usable = sum(reply.accepted for reply in replies.values())
            if usable >= needed or not any(reply.kind == LOST for reply in replies.values()):
                break
        replies = self._told(phase, round, replies, abstaining)
        accepted = {name: reply for name, reply in replies.items() if reply.accepted}
        weights = {name: self._roster.sites[name].weight(reply.examples) for name, reply in accepted.items()}
        models = {
            name: SiteModel(reply.tensors, weights[name], self._handed_on(phase, name))
            for name, reply in accepted.items()
        }
        return Collected(replies, {name: down.get(name, 0) for name in replies}, models)

    def _handed_on(self, phase: Phase, site: str) -> tuple[str, ...]:
        """Prefixes of the parameters that the site does not train. One with differential privacy trains all, and does
        not tell how many of its pictures are labelled. In step 1 labels count that have a sentence."""
        from dusss_core.training import handed_on

        counts = self._roster.sites[site].counts
        labelled = counts.get("n_labelled", 1)
        if phase.reads_sentences:  # a site of an earlier release does not tell
            labelled = counts.get("n_labelled_text", labelled)
        return handed_on(self._study, phase, labelled)

    def _told(
        self, phase: Phase, round: int, replies: dict[str, Reply], abstaining: dict[str, str]
    ) -> dict[str, Reply]:
        """The answers by name, with those of sites that are away; who is left out is logged, and who abstains noted."""
        for site in self._roster.away():
            if site.name not in replies and site.name not in abstaining:
                replies[site.name] = Reply(site.name, "not connected", kind=LOST)
                self._reporter.on_site_refused(site.name, "not connected")
        for name, reply in replies.items():
            if not reply.accepted:
                log.warning("%s round %d: %s: %s", phase, round, name, reply.reason)
                if reply.abstains:
                    abstaining[name] = reply.reason
        return dict(sorted(replies.items()))

    def _open_sites(self, replies: Mapping[str, Reply], abstaining: Mapping[str, str]) -> set[str]:
        """Sites whose answer the round still lacks."""
        done = {name for name, reply in replies.items() if reply.kind != LOST}
        return self._roster.sites.keys() - abstaining.keys() - done

    def _number_of(self, open_sites: Container[str]) -> int:
        """How many of them train, there or away: no wait brings more."""
        return sum(site.name in open_sites for site in (*self._roster.training(), *self._roster.away()))

    def _screen(self, replies: dict[str, Reply]) -> None:
        """Refuse updates and statistics that are far too large."""
        ratio = self._federation.max_norm_ratio
        accepted = {name: reply for name, reply in replies.items() if reply.accepted}
        if ratio is None:
            return
        if len(accepted) < NEEDED and not self._told_unscreened:
            self._told_unscreened = True
            log.info("with fewer than %d answers the sizes of updates are not compared", NEEDED)
        norms = {name: reply.norm for name, reply in accepted.items()}
        for name, norm in norms.items():
            accepted[name].metrics["update.norm"] = norm
        examples = {name: self._roster.sites[name].weight(reply.examples) for name, reply in accepted.items()}
        refused = too_strong({name: reply.moments for name, reply in accepted.items()})
        refused |= too_large(norms, examples, ratio, declared=self._federation.sizes or ())
        for name, reason in refused.items():
            replies[name] = Reply(name, reason, metrics=accepted[name].metrics, bytes_up=accepted[name].bytes_up)
            self._reporter.on_site_refused(name, reason)
