"""A study from the coordinator's side: phases, rounds, early stopping, checkpoints, evaluation.

Flower's `Strategy.start` counts rounds from 1 and knows one phase, so the loop is here and the strategies only do
their arithmetic (server/rounds/aggregation.py). One message per round and site: the site validates the model that
arrives, then trains it. So the validation figures of round r are those of the model that round r - 1 made, and one
more message, for validation alone, ends a phase.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from dusss_core.errors import UserError
from dusss_core.phases import Phase
from server.rounds.aggregation import Aggregator, check_number_of_sites
from server.rounds.charges import Charges
from server.rounds.collecting import Collector
from server.rounds.domains import LOOK_AT, warning_of_domains
from server.rounds.enough import Cause, RoundFailed, check_enough
from server.rounds.heads import Heads
from server.rounds.means import lines_of, means_of, traffic, validation_of
from server.rounds.messages import Messages
from server.rounds.replies import MISCOUNTED, Reply
from server.rounds.roster import Roster, Site
from server.rounds.secure import SecureCollector
from server.rounds.selection import NOTHING_TO_CHOOSE_BY, Selection
from server.rounds.shares import warning_of_shares
from server.rounds.spool import Spool
from server.rounds.summary import evaluation_figures, make_summary, without_own_layers
from server.rounds.worth import Worth
from server.runs.checkpoints import Checkpoint
from server.runs.events import PlainReporter, Reporter
from server.runs.lines import ALL_SITES
from server.runs.runfolder import HEADS, LEDGERS, RunFolder, log, nested
from server.runs.students import write_student_of_run, write_vlm_of_run
from server.study.config import StudyConfig

if TYPE_CHECKING:
    from flwr.serverapp import Grid
    from torch import Tensor

    from dusss_core.training import Start

__all__ = ["Coordinator", "RoundFailed"]

First = Callable[[StudyConfig, Phase, "Mapping[str, Tensor] | None"], "Start"]


class Coordinator:
    """Runs one study over the sites that a Grid reaches.

    Args:
        run: the folder of the run, from `server.runs.runfolder.open_run`.
        sites: names of the sites to wait for, which alone may take part; None: federation.sites.
        wait_s: how long to wait for sites at the start; None: federation.start_timeout_s.
        method: what the run is called in the display.
        cause: of a simulated site, what went wrong there with its last message: the text, and problem, remedy and code
            where a person can mend it; None: nothing, or nobody here may know.
        first: draws the first weights of a phase, as `dusss_core.training.start_of`; None: that.
    """

    def __init__(
        self,
        grid: Grid,
        study: StudyConfig,
        run: RunFolder,
        *,
        reporter: Reporter | None = None,
        sites: Iterable[str] | None = None,
        wait_s: float | None = None,
        method: str = "federated",
        cause: Cause = lambda site: None,
        first: First | None = None,
    ):
        self._study = study
        self._first = first or _drawn_here
        self._reporter = reporter or PlainReporter()
        self._wait_s = study.federation.start_timeout_s if wait_s is None else wait_s
        self._method = method
        self._cause = cause
        self._warned_of_saturation = False
        self._worth = Worth(study)
        self._run = run
        told = {
            "charges": Charges(run.folder / LEDGERS, run.charges()),
            "heads": Heads(run.folder / HEADS),
            "partners": run.partners(),
        }
        self._messages = Messages(study, run.run_key, self._reporter, **told)
        allowed = study.federation.sites if sites is None else sites
        federation = study.federation
        outside = self._reporter.on_site_outside
        self._roster = Roster(
            grid, self._messages.query, allowed, self._say, federation.sizes, federation.round_timeout_s, outside
        )
        collector = SecureCollector if study.federation.secure_aggregation else Collector
        self._collector = collector(study, self._roster, self._messages, self._reporter, self._say)

    def run(self) -> dict[str, Any]:
        """The whole study, or what is left of it.

        Returns:
            What summary.json holds.

        Raises:
            UserError: no or too few sites, disk full, ...
            RoundFailed: too few usable answers.
        """
        with self._run.recording(self._say):
            try:
                return self._run_study()
            except Exception as error:
                log.error("stopped: %s: %s", type(error).__name__, error)
                raise

    def evaluate(self) -> dict[str, Any]:
        """Evaluate the final student once more and write summary.json again.

        Raises:
            UserError: the study has no final student yet.
        """
        with self._run.recording(self._say):
            student = self._run.checkpoints.final(Phase.SEGMENT)
            if student is None:
                raise UserError(
                    f"{self._run.folder}: there is no final student yet",
                    "finish the run with --resume, then evaluate it",
                )
            self._gather()
            if (vlm := self._run.checkpoints.final(Phase.PRETRAIN)) is not None and self._study.method.text_mask:
                self._messages.hold_vlm(vlm)
            return self._evaluate(student)

    # A study.

    def _run_study(self) -> dict[str, Any]:
        phases = self._study.phases()
        self._reopen_extended(phases)
        summary = self._run.summary()
        if summary is not None and self._run.checkpoints.final(Phase.SEGMENT) is not None:
            self._say("this study is finished; nothing was done. Evaluate it again with: python -m server evaluate")
            return summary
        if self._run.resumed:
            self._say(f"resuming the run in {self._run.folder}")
        self._gather()
        names = [site.name for site in self._roster.all()]
        counts = ", ".join(f"{site.name} ({site.pictures} training pictures)" for site in self._roster.all())
        log.info("study %s, run %s, sites: %s", self._study.study, self._run.run_key, counts)
        pictures = {site.name: site.pictures for site in self._roster.training()}
        if warning := warning_of_shares(self._study.federation, pictures):
            self._say(f"warning: {warning}")
        self._reporter.on_study(self._study.study, names, phases, self._method)
        final = None
        for phase, rounds in phases.items():
            final = self._run.checkpoints.final(phase) or self._run_phase(phase, rounds)
            if phase == Phase.PRETRAIN and self._study.method.text_mask:
                self._messages.hold_vlm(final)
        return self._evaluate(final)

    def _gather(self) -> None:
        federation = self._study.federation
        self._roster.gather(federation.min_sites, self._wait_s, self._run.last_sites())
        check_number_of_sites(federation, len(self._roster.training()))

    def _reopen_extended(self, phases: Mapping[str, int]) -> None:
        """Go on with a phase that ended because all its rounds were done, and now has more."""
        checkpoints = self._run.checkpoints
        for phase, rounds in phases.items():
            final = checkpoints.final(phase)
            if final is None or final.ended != _ALL_DONE or rounds <= final.last_round:
                continue
            if any(checkpoints.rounds(later) or checkpoints.final(later) for later in _after(phase)):
                raise UserError(
                    f"{phase}.rounds: the {phase} phase is over after {final.last_round} rounds",
                    "set it back, or start afresh with --force or another --out",
                )
            checkpoints.drop_final(phase)
            self._run.summary_path.unlink(missing_ok=True)

    # A phase.

    def _run_phase(self, phase: Phase, rounds: int) -> Checkpoint:
        last, aggregator, selection = self._start_phase(phase)
        self._messages.hold_layers(last.layers)
        self._run.outputs.drop_after(phase, last.round)
        self._reporter.on_phase(phase, rounds, last.round + 1)
        abstaining: dict[str, str] = {}
        with closing(Spool(self._run.folder, last.model)) as spool:
            while last.round < rounds and not selection.exhausted:
                last = self._run_round(phase, rounds, last, aggregator, selection, abstaining, spool)
        if last.round:
            self._validate_last(last, selection, abstaining)
            if not selection.chooses and self._study.federation.select != "last":
                self._say(f"{phase}: {NOTHING_TO_CHOOSE_BY}")
        final = self._choose(last, selection)
        final.ended = (
            _ALL_DONE
            if last.round >= rounds
            else (f"no better model in {selection.patience} rounds ({phase}.patience)")
        )
        final.last_round, final.totals, final.layers = last.round, last.totals, last.layers
        self._run.checkpoints.save_final(final)
        log.info(
            "%s ended after round %d (%s); the model of round %d is final", phase, last.round, final.ended, final.round
        )
        self._reporter.on_phase_end(phase, final.round, final.ended)
        return final

    def _start_phase(self, phase: Phase) -> tuple[Checkpoint, Aggregator, Selection]:
        aggregator = Aggregator(self._study.federation)
        federation = self._study.federation
        by_median = federation.select == "median"
        selection = Selection(phase, phase.settings(self._study).patience, by_median, federation.max_share)
        last = self._run.checkpoints.latest(phase)
        if last is None:
            self._messages.resume({})
            vlm = self._run.checkpoints.final(Phase.PRETRAIN)
            start = self._first(self._study, phase, vlm.model if vlm else None)
            return Checkpoint(phase, 0, start.shared, layers=start.layers), aggregator, selection
        self._messages.resume(last.reference)
        aggregator.load_state(last.server)
        selection.restore(last.selection)
        log.info("%s goes on after round %d", phase, last.round)
        return last, aggregator, selection

    def _choose(self, last: Checkpoint, selection: Selection) -> Checkpoint:
        best = selection.best_round
        if self._study.federation.select == "last" or best is None or best == last.round:
            return Checkpoint(last.phase, last.round, last.model, selection=selection.state())
        checkpoint = self._run.checkpoints.load_round(last.phase, best)
        return Checkpoint(last.phase, best, checkpoint.model, selection=selection.state())

    # A round.

    def _run_round(
        self,
        phase: Phase,
        rounds: int,
        last: Checkpoint,
        aggregator: Aggregator,
        selection: Selection,
        abstaining: dict[str, str],
        spool: Spool,
    ) -> Checkpoint:
        started, round = time.perf_counter(), last.round + 1
        spool.empty()
        collected = self._collector.collect(phase, round, rounds, last.model, abstaining, spool)
        replies, down = collected.replies, collected.down
        accepted = {name: reply for name, reply in replies.items() if reply.accepted}
        for metrics in (reply.metrics for reply in accepted.values() if "seconds" in reply.metrics):
            # no site works longer than its answer is waited for
            metrics["seconds"] = min(metrics["seconds"], time.perf_counter() - started)
        if collected.lost:
            self._say(
                f"{phase} round {round}: the sites have given their parts, the sum was lost, and no part is given "
                "twice; the model stays as it was"
            )
            model = last.model
        else:
            check_enough(self._study, self._run, self._roster, phase, round, replies, abstaining, self._cause)
            model = aggregator.aggregate(last.model, collected.models)
            if round == LOOK_AT and (warning := warning_of_domains(collected.models)):
                self._say(f"warning: {phase}: {warning}")
        selection.observe(last.round, validation_of(accepted, self._roster.sites))
        figures = {
            **means_of(accepted, self._roster.sites, self._study.federation.max_share),
            **traffic(replies, down),
            "seconds": time.perf_counter() - started,
        }
        self._warn_of_saturation(phase, round, figures)
        self._run.outputs.add(
            [
                *lines_of(phase, round, replies, down),
                {"phase": phase, "round": round, "site": ALL_SITES, **nested(figures)},
            ]
        )
        totals = {key: last.totals.get(key, 0.0) + figures[key] for key in ("seconds", "bytes_up", "bytes_down")}
        totals["site_seconds"] = last.totals.get("site_seconds", 0.0) + sum(
            reply.metrics.get("seconds", 0.0) for reply in accepted.values()
        )
        totals["rounds"] = last.totals.get("rounds", 0.0) + 1
        checkpoint = Checkpoint(
            phase,
            round,
            model,
            aggregator.state(),
            selection.state(),
            totals,
            reference=self._messages.reference,
            layers=last.layers,
        )
        self._run.checkpoints.save_round(checkpoint, self._study.federation.keep_checkpoints, selection.best_round)
        log.info("%s round %d: %d of %d sites, %.1f s", phase, round, len(accepted), len(replies), figures["seconds"])
        self._reporter.on_round_end(phase, round, figures, selection.best_round)
        for line in self._worth.news(phase, {name: reply.metrics for name, reply in accepted.items()}):
            self._say(line)
        return checkpoint

    def _validate_last(self, last: Checkpoint, selection: Selection, abstaining: Mapping[str, str]) -> None:
        """The last round's model has not been validated yet: the next round would have done it."""
        self._roster.refresh()
        sites = [site for site in self._roster.training() if site.name not in abstaining and site.counts.get("n_val")]
        replies, down = self._messages.ask(
            self._roster, "evaluate", sites, last.model, phase=last.phase, round=last.round + 1, what="val"
        )
        accepted = {name: reply for name, reply in replies.items() if reply.accepted}
        selection.observe(last.round, validation_of(accepted, self._roster.sites))
        if accepted:
            round, figures = (
                last.round + 1,
                {**means_of(accepted, self._roster.sites, self._study.federation.max_share), **traffic(replies, down)},
            )
            self._run.outputs.add(
                [
                    *lines_of(last.phase, round, replies, down),
                    {"phase": last.phase, "round": round, "site": ALL_SITES, **nested(figures)},
                ]
            )

    # Evaluation.

    def _evaluate(self, student: Checkpoint) -> dict[str, Any]:
        started = time.perf_counter()
        self._messages.hold_layers(student.layers)
        write_student_of_run(self._run.folder, self._study, self._run.digest, student)
        vlm = self._run.checkpoints.final(Phase.PRETRAIN)
        write_vlm_of_run(self._run.folder, self._study, self._run.digest, vlm)
        self._roster.refresh()
        replies = self._tested(student, self._roster.all())
        if miscounted := {name for name, reply in replies.items() if reply.kind == MISCOUNTED}:
            # it may have got new pictures, and was asked what it has
            self._roster.refresh()
            replies |= self._tested(student, [site for site in self._roster.all() if site.name in miscounted])
        for name, reply in replies.items():
            if not reply.accepted:
                log.warning("evaluation: %s: %s", name, reply.reason)
        finals = {phase: self._run.checkpoints.final(phase) for phase in Phase}
        summary = make_summary(
            self._study,
            self._run.digest,
            self._run.run_key,
            self._roster.all(),
            {name: reply.metrics for name, reply in replies.items() if reply.accepted},
            {phase: final for phase, final in finals.items() if final is not None},
            evaluate_seconds=time.perf_counter() - started,
            before=self._run.summary() or {},
            members=self._run.members(),
            lines=self._run.metrics(),
        )
        if missing := without_own_layers(self._study, replies):
            self._say(f"warning: {missing}")
        self._run.outputs.finish(summary)
        self._reporter.on_evaluated(*evaluation_figures(replies, summary))
        if alone := [name for name, site in summary.get("external_test", {}).items() if site["dice"] is not None]:
            self._say(f"tested alone, so in neither mean nor worst: {', '.join(alone)}")
        if (own := summary.get("personal", {})).get("dice_mean") is not None:
            told = f"mean Dice {own['dice_mean']:.4f}, worst {own['dice_worst']:.4f}"
            self._say(f"students of the sites' own ({own['kind']}): {told}")
        self._reporter.on_study_end(summary["seconds"]["total"], str(self._run.folder))
        return summary

    def _tested(self, student: Checkpoint, sites: list[Site]) -> dict[str, Reply]:
        about = {"phase": Phase.SEGMENT, "round": max(1, student.round), "study_digest": self._run.digest}
        return self._messages.ask(self._roster, "evaluate", sites, student.model, what="test", **about)[0]

    # Figures.

    def _warn_of_saturation(self, phase: Phase, round: int, figures: Mapping[str, float]) -> None:
        """Once, when a phase's figures first show that semantic-similarity supervision does nothing."""
        quantiles = [figures.get(f"train.dsss_{q}") for q in ("p10", "p50", "p90")]
        if self._warned_of_saturation or None in quantiles:
            return
        from dusss_core.losses import saturation_warning

        if warning := saturation_warning(*quantiles):
            self._warned_of_saturation = True
            self._say(f"warning: {phase} round {round}: {warning}")

    def _say(self, text: str) -> None:
        log.info("%s", text)
        self._reporter.on_message(text)


_ALL_DONE = "all rounds done"


def _drawn_here(study: StudyConfig, phase: Phase, vlm: Mapping[str, Tensor] | None) -> Start:
    from dusss_core.training import start_of

    return start_of(study, phase, vlm)


def _after(phase: Phase) -> list[Phase]:
    phases = list(Phase)
    return phases[phases.index(phase) + 1 :]
