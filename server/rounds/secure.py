"""A round under secure aggregation: two small exchanges, the one that trains, and two more that unmask the sum.

    keys     fresh public keys of every site          (docs/secure_aggregation.md has the protocol)
    deal     shares of two secrets of each site, sealed for each other
    train    the model goes out; masked updates come back. Sites may drop out here, as long as enough are left
    vote     the sites sign who is left
    reveal   shares with which the masks of the sum, and no other, can be taken off

Nothing that a site sends here says anything about its own update; the weighted mean is the first number that does.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dusss_core.phases import Phase
from feddusss import standing, wire
from feddusss.secagg.convener import Convener
from feddusss.secagg.fixedpoint import FRACTION_BITS, OutOfRange, decode
from feddusss.secagg.member import default_threshold
from feddusss.secagg.records import Advert, Dealing, Occasion, Record, Refused, Revealed, Vote, dump, parse
from feddusss.wire import is_statistic
from server.rounds.accusations import judge, proofs
from server.rounds.aggregation import SiteModel
from server.rounds.collecting import Collected, Collector
from server.rounds.replies import LOST, SPENT, Reply, read_reply
from server.rounds.roster import Site
from server.rounds.spool import Spool

if TYPE_CHECKING:
    from flwr.app import ConfigRecord, Message
    from torch import Tensor

MEAN = "(mean)"
"""Stands for all sites where a model of one is expected."""
STEP_TIMEOUT_S = 120.0
"""For the small exchanges, which need no training."""


class _Failed(Exception):
    """An attempt gave no sum."""


class _FoundOut(_Failed):
    """Nor can one that has the same sites in it."""


class SecureCollector(Collector):
    """Collects the sum of a round's updates. An attempt that fails is repeated with fresh keys."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._put_out: dict[str, str] = {}
        """Sites of which one proved that they dealt wrong shares, and what is said of them."""

    def collect(
        self,
        phase: Phase,
        round: int,
        rounds: int,
        model: Mapping[str, Tensor],
        abstaining: dict[str, str],
        spool: Spool,
    ) -> Collected:
        """The answers of a round, and the weighted mean of the updates. Nothing waits in the spool: an update is added
        to the sum as it comes."""
        federation = self._federation
        exchanges = _Exchanges(self, phase, round, model)
        for name, reason in self._put_out.items():
            exchanges.put_out(name, reason)
        mean, failed_before, tries = None, False, 0
        self._roster.refresh()
        while tries <= federation.retries:
            open_sites = self._open_sites(exchanges.replies, abstaining)
            threshold = federation.secure_threshold or default_threshold(self._known())
            if self._number_of(open_sites) < threshold:
                break
            if failed_before:
                self._say(f"{phase} round {round}: no sum; asking again, with fresh keys")
            self._roster.wait_for(threshold, federation.start_timeout_s, open_sites)
            sites = [s for s in self._roster.training() if s.name in self._open_sites(exchanges.replies, abstaining)]
            sites = exchanges.reliable(sites, threshold)
            self._reporter.on_round_start(phase, round, rounds, [site.name for site in sites])
            try:
                mean = exchanges.run(sites, threshold)
                break
            except _Failed as failed:
                self._say(f"{phase} round {round}: {failed}")
                failed_before = True
                # or one site after the other could use them up; each of these leaves one site less, for the round
                tries += not isinstance(failed, _FoundOut)
                left = [s for s in self._roster.training() if s.name in self._open_sites(exchanges.replies, abstaining)]
                if len(left) < threshold and not any(reply.kind == LOST for reply in exchanges.replies.values()):
                    break
        self._put_out |= exchanges.proved
        replies = self._told(phase, round, exchanges.replies, abstaining)
        replies = {name: replace(reply, bytes_up=exchanges.up.get(name, 0)) for name, reply in replies.items()}
        down = {name: exchanges.down.get(name, 0) for name in replies}
        if mean is None:
            lost = any(reply.kind == SPENT for reply in replies.values())
            return Collected(replies, down, {}, lost)
        return Collected(replies, down, {MEAN: mean})

    def _known(self) -> int:
        return len(self._roster.training()) + len(self._roster.away())


class _Exchanges:
    """The attempts at one round's sum, one after the other. What was heard of each site is in `replies`."""

    def __init__(self, collector: SecureCollector, phase: Phase, round: int, model: Mapping[str, Tensor]):
        self._federation = collector._federation
        self._handed_on = collector._handed_on
        self._roster, self._messages, self._reporter = collector._roster, collector._messages, collector._reporter
        self._phase, self._round, self._model = phase, round, model
        self._weighting = self._federation.weighting
        self._attempt = ""
        self._dealt_nothing: set[str] = set()
        self._spent: dict[str, Reply] = {}
        self.proved: dict[str, str] = {}
        """Sites of which one proved that they dealt wrong shares, and what is said of them."""
        self.replies: dict[str, Reply] = {}
        self.up: dict[str, int] = {}
        self.down: dict[str, int] = {}

    def reliable(self, sites: list[Site], threshold: int) -> list[Site]:
        """Those of `sites` that did not make an attempt fail by giving keys and then no shares, if they are enough."""
        others = [site for site in sites if site.name not in self._dealt_nothing]
        return others if len(others) >= threshold else sites

    def put_out(self, name: str, reason: str) -> None:
        """The round does without this site, and says why."""
        self.replies[name] = Reply(name, reason)
        self._reporter.on_site_refused(name, reason)

    def run(self, sites: list[Site], threshold: int) -> SiteModel:
        """One attempt.

        Raises:
            _Failed: no sum; each site's part in that is in `replies`.
        """
        if len(sites) < threshold:
            raise _Failed(f"{len(sites)} sites can take part, {threshold} needed (federation.secure_threshold)")
        by_name = {site.name: site for site in sites}
        self._attempt, self._spent = secrets.token_hex(16), {}
        try:
            convener = self._gather_keys(by_name, threshold)
            self._deal(convener, by_name)
            accepted = self._train(convener, by_name)
            self._vote(convener, by_name)
            self._reveal(convener, by_name)
            mean = self._mean(convener, accepted)
        except _Failed as failed:
            for name, reply in self.replies.items():
                if reply.accepted and name in by_name:
                    self.replies[name] = Reply(name, f"its part is of no use: {failed}", kind=LOST)
            self.replies |= self._spent
            raise
        return mean

    # The five steps.

    def _gather_keys(self, sites: Mapping[str, Site], threshold: int) -> Convener:
        occasion = Occasion(
            run=self._messages.run_key,
            phase=self._phase,
            round=self._round,
            attempt=self._attempt,
            threshold=threshold,
            task=self._messages.task(self._model, self._phase, self._weighting),
        )
        adverts = {}

        def take(site: str, advert: Advert) -> None:
            if (advert.site, advert.occasion) != (site, occasion):
                raise Refused(f"'{site}' sent keys of another site or occasion", site=site)
            adverts[site] = advert

        self._step("keys", sites.values(), lambda site: dump(occasion), Advert, take)
        if len(adverts) < threshold:
            raise _Failed(f"{len(adverts)} sites gave keys, {threshold} needed")
        return Convener(occasion, adverts.values())

    def _deal(self, convener: Convener, sites: Mapping[str, Site]) -> None:
        everybody = dump(convener.adverts())
        dealt = self._step(
            "deal", (sites[name] for name in convener.members), lambda site: everybody, Dealing, convener.take_dealing
        )
        if missing := set(convener.members) - dealt:
            if not self._judge("deal", convener, {name: self.replies[name] for name in missing}):
                self._dealt_nothing |= missing
            raise _Failed(f"no shares from {', '.join(sorted(missing))}")

    def _train(self, convener: Convener, sites: Mapping[str, Site]) -> dict[str, Reply]:
        members = [sites[name] for name in convener.members]
        records = {
            site.name: self._record("train", dump(convener.deliveries(site.name)), weighting=self._weighting)
            for site in members
        }

        def add(reply: Reply) -> Reply:
            convener.add(reply.site, _flat(reply.tensors))
            return replace(reply, tensors={})

        answered, sent = self._messages.ask(
            self._roster,
            "train",
            members,
            self._model,
            records,
            on_accepted=add,
            phase=self._phase,
            round=self._round,
        )
        for name, reply in answered.items():
            self._count(name, reply.bytes_up, sent.get(name, 0) + len(records[name]["body"]))
            self.replies[name] = reply
        refusals = {name: reply for name, reply in answered.items() if not reply.accepted}
        self.proved |= proofs(convener, refusals)
        too_few = len(convener.survivors) < convener.occasion.threshold
        if too_few or self.proved.keys() & set(convener.members):
            # nobody has voted: a sum with a liar in it, who could keep back its shares, is not begun
            self._judge("train", convener, refusals)
            raise _Failed(
                f"{len(convener.survivors)} of {len(members)} sites gave a masked update, "
                f"{convener.occasion.threshold} needed"
            )
        return {name: self.replies[name] for name in convener.survivors}

    def _vote(self, convener: Convener, sites: Mapping[str, Site]) -> None:
        ballot = dump(convener.ballot())
        self._until_enough("vote", convener, sites, lambda site: ballot, Vote, convener.take_vote)

    def _reveal(self, convener: Convener, sites: Mapping[str, Site]) -> None:
        ballot = convener.ballot()
        voters = {vote.site: sites[vote.site] for vote in ballot.votes}
        content = dump(ballot)
        self._until_enough("reveal", convener, voters, lambda site: content, Revealed, convener.take_revealed)

    def _mean(self, convener: Convener, accepted: Mapping[str, Reply]) -> SiteModel:
        """The model plus the weighted mean of the updates, of each tensor over the sites that trained it: the others
        added nothing to its sum."""
        import torch

        weights = {
            name: int(reply.examples) if self._weighting == "examples" else 1 for name, reply in accepted.items()
        }
        everybody = sum(weights.values())
        handed_on = {site: self._handed_on(self._phase, site) for site in weights}

        def weight(name: str, tensor: Tensor) -> int:
            if is_statistic(name, tensor):
                return everybody
            trained = [some for site, some in weights.items() if not name.startswith(handed_on[site])]
            return sum(trained) or everybody

        try:
            total = convener.total()
            result, start = {}, 0
            for name in sorted(self._model):
                tensor = self._model[name]
                part = total[start : start + tensor.numel()]
                start += tensor.numel()
                floating = tensor.is_floating_point()
                mean = decode(part, weight(name, tensor), FRACTION_BITS if floating else 0)
                mean = mean.reshape(tuple(tensor.shape))
                # a counter's mean is rounded to a whole number
                update = torch.from_numpy(np.asarray(mean if floating else np.rint(mean)))
                result[name] = (tensor.double() + update).to(tensor.dtype)
        except (Refused, OutOfRange) as problem:
            raise _Failed(str(problem)) from None
        return SiteModel(result, float(everybody))

    def _judge(self, step: str, convener: Convener, refusals: Mapping[str, Reply]) -> set[str]:
        """Do without members that lie; those who refused them for it did right, and are asked again.

        Args:
            refusals: of members that did not take the step, by name.

        Returns:
            Those who did right.

        Raises:
            _FoundOut: a member is done without.
        """
        judged = judge(step, convener, refusals, self.proved)
        for name in judged.right:
            self.replies[name] = replace(refusals[name], kind=LOST)
        for name, reason in judged.out.items():
            self.put_out(name, reason)
        if judged.out:
            raise _FoundOut(f"without {', '.join(sorted(judged.out))}, whose keys or shares are wrong")
        return judged.right

    # A small exchange.

    def _until_enough(
        self,
        step: str,
        convener: Convener,
        sites: Mapping[str, Site],
        body: Callable[[str], bytes],
        kind: type[Record],
        take: Callable[[str, Record], None],
    ) -> None:
        """A step that needs `threshold` of the survivors. Those that were lost are asked again while there are too few:
        from here on a new attempt cannot be had."""
        needed = convener.occasion.threshold
        done: set[str] = set()
        for again in range(1 + self._federation.retries):
            waiting = [site for name, site in sites.items() if name in convener.survivors and name not in done]
            if again:
                names = {site.name for site in waiting}
                self._roster.wait_for(needed - len(done), self._federation.start_timeout_s, names)
            lost: set[str] = set()
            done |= self._step(step, waiting, body, kind, take, lost=lost)
            if len(done) >= needed or not lost:
                break
        if len(done) < needed:
            raise _Failed(f"{len(done)} of {len(convener.survivors)} sites took the step '{step}', {needed} needed")

    def _step(
        self,
        step: str,
        sites: Iterable[Site],
        body: Callable[[str], bytes],
        kind: type[Record],
        take: Callable[[str, Record], None],
        lost: set[str] | None = None,
    ) -> set[str]:
        """Ask each site for its part, and let `take` have it; the sites that gave it.

        A site that does not is refused in `replies`. With `lost` its update is in the sum already, and stays there: the
        site is added to `lost` where asking again may help.
        """
        contents = {}
        for site in sites:
            record = self._record(step, body(site.name))
            self._count(site.name, 0, len(record["body"]))
            contents[site.name] = self._messages.step(record, self._phase, self._round)
        timeout = min(STEP_TIMEOUT_S, self._federation.round_timeout_s)
        answers: dict[str, Message | None] = {}
        ask, busy = self._roster.ask, self._reporter.on_site_busy
        silent = ask(standing.STEP, contents, timeout, answers.__setitem__, on_busy=busy)
        answers |= dict.fromkeys(silent)
        gave = set()
        for name, message in sorted(answers.items()):
            reply = read_reply(name, message, silent=silent.get(name, ""))
            if reply.accepted:
                reply = self._taken(name, message, kind, take)
            if reply.accepted:
                gave.add(name)
                continue
            self._reporter.on_site_refused(name, f"{step}: {reply.reason}")
            if lost is None:
                self.replies[name] = reply
            elif reply.kind == SPENT:
                self._spent[name] = reply
            elif reply.kind == LOST:
                lost.add(name)
        return gave

    def _taken(self, name: str, message: Message, kind: type[Record], take: Callable[[str, Record], None]) -> Reply:
        content = wire.config_records(message.content).get("secure", {}).get("body")
        try:
            record = parse(kind, content, name)
            self._count(name, len(content), 0)
            take(name, record)
        except Refused as refused:
            return Reply(name, str(refused))
        return Reply(name)

    def _record(self, step: str, body: bytes, **more: str) -> ConfigRecord:
        from flwr.app import ConfigRecord

        return ConfigRecord({"step": step, "attempt": self._attempt, "body": body, **more})

    def _count(self, site: str, up: int, down: int) -> None:
        self.up[site] = self.up.get(site, 0) + up
        self.down[site] = self.down.get(site, 0) + down


def _flat(tensors: Mapping[str, Tensor]) -> np.ndarray:
    """The masked numbers of all tensors, in order of name."""
    return np.concatenate([tensors[name].numpy().ravel() for name in sorted(tensors)]).view(np.uint64)
