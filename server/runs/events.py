"""What the coordinator tells the outside while a study runs: one interface, and a plain-lines version of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from dusss_core.commandline import discard


class Reporter:
    """Every method does nothing; a subclass overrides those that it shows.

    The order of calls: `on_study`, then for each phase `on_phase`, for each round of it `on_round_start`, for each
    site that trains `on_site_start`, many `on_site_step`, `on_site_done` or `on_site_refused`, then `on_round_end`;
    after the last round `on_phase_end`; then `on_evaluated`, and `on_study_end` at last. `on_message`,
    `on_site_outside` and `close` can come at any time. Steps are only heard of where the sites run in this process.
    When methods are compared, each further method is one more such sequence, opened by `on_study` with its own
    `method`.

    Of sites in processes of their own steps are told a few times a second at most.

    Metrics are scalars under dotted names: "train.loss", "val.dice", "seconds", "num-examples", ...
    """

    happened: float | None = None
    """When what is being told happened, in seconds since 1970, where it is told later; None: now."""

    def on_study(self, study: str, sites: list[str], phases: Mapping[str, int], method: str = "federated") -> None:
        """A study starts or goes on. `sites`: names of those that take part. `phases`: rounds by phase, in order.
        `method`: "federated", or the name given to --compare."""

    def on_phase(self, phase: str, rounds: int, start_round: int) -> None:
        """`phase` ("pretrain" or "segment") begins with round `start_round` of `rounds`: 1, or later after a resume."""

    def on_round_start(self, phase: str, round: int, rounds: int, sites: list[str]) -> None:
        """The model goes out to `sites`."""

    def on_site_start(self, site: str) -> None:
        """`site` begins to work on its message."""

    def on_site_busy(self, site: str, study: str) -> None:
        """`site` says that our message waits while it works for another `study`; empty: not any more."""

    def on_site_outside(self, node: str, reason: str) -> None:
        """`node` is connected and takes no part, such as one that waits for approval; empty: that is over."""

    def on_site_step(self, site: str, step: int, steps: int, loss: float) -> None:
        """`site` finished step `step` (from 1) of `steps` of this round."""

    def on_site_done(self, site: str, metrics: Mapping[str, float]) -> None:
        """`site` answered and its answer was accepted."""

    def on_site_refused(self, site: str, reason: str) -> None:
        """`site` declined, failed, or sent an answer that was refused; the round goes on with the rest."""

    def on_round_end(self, phase: str, round: int, metrics: Mapping[str, float], best_round: int | None) -> None:
        """The round is aggregated and saved. `metrics`: example-weighted means over sites, "seconds",
        "bytes_up", "bytes_down". `best_round`: the round whose model is the best so far, None if not known."""

    def on_phase_end(self, phase: str, final_round: int, reason: str) -> None:
        """The phase's final model is that of `final_round`; `reason`: why it ended ("all rounds done", ...)."""

    def on_evaluated(self, sites: Mapping[str, Mapping[str, float]], overall: Mapping[str, float]) -> None:
        """The final student was evaluated; `sites`: metrics by site, `overall`: the summary's "global" figures."""

    def on_study_end(self, seconds: float, folder: str) -> None:
        """Everything is written to `folder`."""

    def on_message(self, text: str) -> None:
        """Something a person should read: a resumed run, a warning, ..."""

    def close(self) -> None:
        """No more calls come, possibly because of an error; give the terminal back."""


class PlainReporter(Reporter):
    """One line per event, for logs and for terminals that cannot draw."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream
        self._started = time.monotonic()

    def on_study(self, study: str, sites: list[str], phases: Mapping[str, int], method: str = "federated") -> None:
        rounds = ", ".join(f"{phase} {count} rounds" for phase, count in phases.items())
        self._say(f"{study} [{method}]: {len(sites)} site{'s' * (len(sites) != 1)} ({', '.join(sites)}); {rounds}")

    def on_phase(self, phase: str, rounds: int, start_round: int) -> None:
        self._say(f"{phase}: from round {start_round} of {rounds}")

    def on_site_busy(self, site: str, study: str) -> None:
        self._say(f"  waiting: {site} trains for {study}" if study else f"  {site} is free for this study")

    def on_site_refused(self, site: str, reason: str) -> None:
        self._say(f"  {site}: not in this round: {reason}")

    def on_round_end(self, phase: str, round: int, metrics: Mapping[str, float], best_round: int | None) -> None:
        shown = [f"{title} {metrics[name]:.4f}" for name, title in _SHOWN.items() if name in metrics]
        self._say(
            f"{phase} {round:>3}: {'  '.join(shown)}  {metrics.get('seconds', 0):.1f} s"
            + (f"  (best: round {best_round})" if best_round is not None else "")
        )

    def on_phase_end(self, phase: str, final_round: int, reason: str) -> None:
        self._say(f"{phase}: ended, {reason}; the model of round {final_round} is final")

    def on_evaluated(self, sites: Mapping[str, Mapping[str, float]], overall: Mapping[str, float]) -> None:
        for site, metrics in sites.items():
            if "test.dice" in metrics:
                told = metrics.get("test.text_dice")
                with_text = "" if told is None else f", with the sentence {told:.4f}"
                pooled = metrics.get("test.dice_pooled")
                both = "" if pooled is None else f", pooled {pooled:.4f}"
                self._say(f"test {site}: Dice {metrics['test.dice']:.4f}{both}{with_text}")
        if overall.get("dice_mean") is not None:
            self._say(f"test: mean Dice {overall['dice_mean']:.4f}, worst {overall['dice_worst']:.4f}")
        if overall.get("text_dice_mean") is not None:
            mean, worst = overall["text_dice_mean"], overall["text_dice_worst"]
            self._say(f"test, with the sentence: mean Dice {mean:.4f}, worst {worst:.4f}")

    def on_study_end(self, seconds: float, folder: str) -> None:
        self._say(f"done in {seconds:.0f} s: {folder}")

    def on_message(self, text: str) -> None:
        self._say(text)

    def _say(self, text: str) -> None:
        stream = self._stream or sys.stdout
        try:
            print(f"[{time.monotonic() - self._started:7.1f} s] {text}", file=stream, flush=True)
        except BrokenPipeError:
            # whoever read along has gone, as `| head` does: the study goes on, and the run's files tell the rest
            discard(stream)


_SHOWN = {
    "train.loss": "loss",
    "val.loss": "val loss",
    "val.dice": "Dice",
    "val.text_dice": "with the sentence",
}
