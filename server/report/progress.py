"""What a person at a terminal sees while a study runs: phase, round, a bar per site, scores, time left."""

from __future__ import annotations

import atexit
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from feddusss.timeleft import Rounds, duration
from server.runs.events import PlainReporter, Reporter

if TYPE_CHECKING:
    from rich.console import RenderableType


def make_reporter(console: Console | None = None) -> Reporter:
    """The live display on a terminal, plain lines otherwise (pipes, logs, dumb terminals)."""
    console = console or Console(file=sys.stdout)
    if console.is_terminal and not console.is_dumb_terminal:
        return RichReporter(console)
    return PlainReporter(console.file)


class RichReporter(Reporter):
    """A live display at the bottom of the terminal; what should stay is printed above it.

    It starts with `on_study` and ends with `close`, which may be called at any time and more than once.
    Lines that other code prints meanwhile go above the display, none is lost.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console()
        self._live: Live | None = None
        self._log_streams: list[tuple[logging.StreamHandler, TextIO]] = []
        self._clock = time.time  # the clock of events that are told later
        self._title = ""
        self._phases: list[str] = []
        self._phase = self._best = ""
        self._round = self._rounds = 0
        self._sites: dict[str, _SiteState] = {}
        self._times = Rounds()
        self._between = ""

    def on_study(self, study: str, sites: list[str], phases: Mapping[str, int], method: str = "federated") -> None:
        self._title = study if method == "federated" else f"{study}, for comparison: {method}"
        self._phases, self._phase = list(phases), ""
        self._sites = {site: _SiteState() for site in sites}
        count = f"{len(sites)} site{'s' * (len(sites) != 1)}"
        self._print(Text.assemble((self._title, "bold"), f"  {count}: {', '.join(sites)}"))
        self._start()

    def on_phase(self, phase: str, rounds: int, start_round: int) -> None:
        self._phase, self._rounds, self._round, self._best = phase, rounds, start_round - 1, ""
        self._times.begin_phase(rounds, start_round - 1)
        self._between = ""
        for state in self._sites.values():
            state.reset()
            state.dice = None
        if start_round > 1:
            self._print(Text(f"{phase}: goes on with round {start_round} of {rounds}"))

    def on_round_start(self, phase: str, round: int, rounds: int, sites: list[str]) -> None:
        self._phase, self._round, self._rounds, self._between = phase, round, rounds, ""
        self._times.begin_round(round, rounds, self._moment())
        for site in sites:
            self._sites.setdefault(site, _SiteState())
        for site, state in self._sites.items():
            state.reset("waits" if site in sites else _NOT_ASKED)

    def on_site_start(self, site: str) -> None:
        if self._between:  # no round goes on: the site measures a model
            self._between = _TESTED if self._between == _TESTED else _VALIDATED
            self._state(site).reset()
        self._state(site).status = "works"

    def on_site_busy(self, site: str, study: str) -> None:
        self._state(site).status = f"trains for {study}" if study else "works"

    def on_site_step(self, site: str, step: int, steps: int, loss: float) -> None:
        state = self._state(site)
        state.step, state.steps, state.loss, state.status = step, steps, loss, "trains"

    def on_site_done(self, site: str, metrics: Mapping[str, float]) -> None:
        state = self._state(site)
        state.status, state.step = "done", state.steps
        state.loss = metrics.get("train.loss", state.loss)
        state.dice = metrics.get("val.dice", state.dice)

    def on_site_refused(self, site: str, reason: str) -> None:
        self._state(site).status = "left out"
        self._print(Text.assemble((f"{site} is not in this round: ", "yellow"), reason))

    def on_round_end(self, phase: str, round: int, metrics: Mapping[str, float], best_round: int | None) -> None:
        self._times.end_round(self._moment())
        self._between = "between two rounds"
        parts = [f"{label} {metrics[name]:.4f}" for name, label in _FIGURES.items() if name in metrics]
        parts += [duration(metrics["seconds"])] if "seconds" in metrics else []
        self._best = f"best: round {best_round}" if best_round is not None else ""
        heading = f"{phase} {round:>{len(str(self._rounds))}}/{self._rounds}"
        self._print(Text.assemble((heading, "cyan"), "  ", "  ".join(parts)))

    def on_phase_end(self, phase: str, final_round: int, reason: str) -> None:
        self._between = _TESTED if self._phases[-1:] == [phase] else "between two phases"
        self._print(Text(f"{phase}: {reason}; the model of round {final_round} is final"))

    def on_evaluated(self, sites: Mapping[str, Mapping[str, float]], overall: Mapping[str, float]) -> None:
        self._stop()
        self._console.print(_result_table(self._title, sites, overall))

    def on_study_end(self, seconds: float, folder: str) -> None:
        self._print(Text.assemble(("Done", "bold green"), f" in {duration(seconds)}: {folder}"))
        self._stop()

    def on_message(self, text: str) -> None:
        self._print(Text(text))

    def close(self) -> None:
        self._stop()

    def seconds_left(self) -> float | None:
        """In this phase, estimated from its latest rounds; None before the first one is finished."""
        return self._times.left(self._clock())

    def _moment(self) -> float:
        """When what is being told happened."""
        return self._clock() if self.happened is None else self.happened

    def _state(self, site: str) -> _SiteState:
        return self._sites.setdefault(site, _SiteState())

    def _start(self) -> None:
        if self._live is None:
            # Drawn by the clock, not by events: many steps cost nothing and nothing flickers.
            self._live = Live(
                console=self._console, get_renderable=self.renderable, refresh_per_second=4, transient=True,
                redirect_stdout=True, redirect_stderr=True,
            )  # fmt: skip
            streams = (sys.stdout, sys.stderr)
            self._live.start()
            self._log_streams = _redirect_log_handlers(dict(zip(streams, (sys.stdout, sys.stderr), strict=True)))
            atexit.register(self._stop)

    def _stop(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            for handler, stream in self._log_streams:
                handler.setStream(stream)
            live.stop()
            atexit.unregister(self._stop)

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)

    def renderable(self) -> RenderableType:
        """The display as it is now."""
        if not self._phase:
            return Text("starting ...", style="dim")
        return Group(Text(), self._heading(), self._site_table())

    def _heading(self) -> Text:
        left = self.seconds_left()
        parts = [f"round {max(self._round, 1)} of {self._rounds}"]
        where = " in this phase" if self._phases[-1:] != [self._phase] else ""
        if self._between in (_VALIDATED, _TESTED):
            parts += [self._between]
        elif left is not None:
            parts += [f"about {duration(left)} left{where}"]
        if not self._between:
            told = [state.status for state in self._sites.values()]
            asked = [status for status in told if status not in ("", _NOT_ASKED)]
            answered = sum(status in ("done", "left out") for status in asked)
            parts += [f"{answered} of {len(asked)} answered"] if asked else []
        parts += [self._best] if self._best else []
        return Text.assemble((self._phase, "bold cyan"), "  " + "  ·  ".join(parts), overflow="ellipsis", no_wrap=True)

    def _site_table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(max_width=20, no_wrap=True, overflow="ellipsis")
        table.add_column(width=24)
        for _ in range(3):
            table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True)
        shown = list(self._sites.items())[: max(1, self._console.height - 6)]
        for site, state in shown:
            bar = ProgressBar(total=max(state.steps, 1), completed=state.step, width=24)
            steps = f"{state.step}/{state.steps}" if state.steps else ""
            loss = "" if state.loss is None else f"loss {state.loss:.4f}"
            dice = "" if state.dice is None else f"Dice {state.dice:.4f}"
            table.add_row(
                Text(site), bar, steps, loss, dice, Text(state.status, style=_STYLES.get(state.status, "dim"))
            )
        if len(shown) < len(self._sites):
            table.add_row(Text(f"and {len(self._sites) - len(shown)} more", style="dim"))
        return table


@dataclass
class _SiteState:
    """What is known of a site in the current round; the Dice is kept until there is a newer one."""

    step: int = 0
    steps: int = 0
    loss: float | None = None
    dice: float | None = None
    status: str = ""

    def reset(self, status: str = "") -> None:
        self.step, self.steps, self.loss, self.status = 0, 0, None, status


_NOT_ASKED = "not asked"
_VALIDATED, _TESTED = "the last round's model is validated", "the final model is tested"
_FIGURES = {"train.loss": "loss", "val.loss": "val loss", "val.dice": "Dice", "val.text_dice": "with the sentence"}
_STYLES = {"trains": "cyan", "works": "cyan", "done": "green", "left out": "yellow"}
_COLUMNS = (
    ("test.dice", "Dice, per picture", 4),
    ("test.dice_pooled", "Dice, pooled", 4),
    ("test.iou", "IoU", 4),
    ("test.hd95", "HD95", 2),
    ("test.n", "pictures", 0),
)
_WITH_TEXT = ("test.text_dice", "Dice with the sentence", 4)


def _redirect_log_handlers(streams: Mapping[TextIO, TextIO]) -> list[tuple[logging.StreamHandler, TextIO]]:
    """Let log handlers that hold a key of `streams` write to its value; returns what they held before.

    A handler keeps the stream that it was made with, and would write into the middle of the display.
    """
    loggers = [
        logging.getLogger(),
        *(log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger)),
    ]
    changed = []
    for handler in {handler for log in loggers for handler in log.handlers}:
        if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
            changed.append((handler, handler.stream))
            handler.setStream(streams[handler.stream])
    return changed


def _result_table(title: str, sites: Mapping[str, Mapping[str, float]], overall: Mapping[str, float]) -> Table:
    table = Table(title=Text(f"{title}: test pictures"), title_justify="left")
    table.add_column("site")
    # of a student that is given sentences: with them
    told = [_WITH_TEXT] if overall.get("text_dice_mean") is not None else []
    columns = [*_COLUMNS, *told]
    for _, heading, _ in columns:
        table.add_column(heading, justify="right")
    for site, metrics in sites.items():
        table.add_row(Text(site), *(_figure(metrics.get(name), digits) for name, _, digits in columns))
    table.add_section()
    means, worst = ([_figure(overall.get(f"text_dice_{kind}"), 4) for _ in told] for kind in ("mean", "worst"))
    names = ("dice_mean", "dice_pooled_mean", "iou_mean")
    table.add_row("mean", *(_figure(overall.get(name), 4) for name in names), "", "", *means)
    lowest = (_figure(overall.get(name), 4) for name in ("dice_worst", "dice_pooled_worst"))
    table.add_row("worst", *lowest, "", "", "", *worst)
    return table


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
