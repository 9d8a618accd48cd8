"""Where a run is, for a page that follows it: read from the run's folder alone, again and again."""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dusss_core.errors import UserError
from feddusss import cli
from feddusss.page import template
from feddusss.timeleft import duration
from server.report import course, within
from server.report.figures import trained
from server.report.quantities import show_figure
from server.runs.eventlog import FILE, Progress, Tail
from server.runs.lines import ALL_SITES, mapping, number
from server.runs.runfiles import Run, read_run
from server.runs.steps import read_steps

QUIET_S = 20.0
"""After so long without a word it is looked at whether a process still works on the run."""
_SAID = 3
_CHANGES = ("metrics.jsonl", "summary.json", "report.html", "config.yaml")


class Live:
    """A run that is followed. Nothing is written to its folder.

    Raises:
        UserError: not a folder of a run.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder).expanduser().absolute()
        if not (self.folder / FILE).is_file():
            read_run(self.folder)
        self._tail, self._progress = Tail(self.folder), Progress()
        self._seen: tuple[Any, ...] = ()
        self._drawn = ""

    def now(self) -> dict[str, Any]:
        """`page`: what is to be seen, as HTML; `version`: another one whenever that is; `left`, `quiet`: lines that
        change by the second, empty where there is nothing to say; `sites`: of the round that is trained, see
        `server.report.within`."""
        moment = time.time()
        if not self.folder.is_dir():
            return self._told(_gone(self.folder), "", "")
        for event in self._tail.read():
            with suppress(TypeError, ValueError):  # an event of another release
                self._progress.take(event)
        progress = self._progress
        steps = read_steps(self.folder, progress.phase, progress.round)
        heard = [known.at for known in steps.values()]
        quiet = None if progress.at is None else max(0.0, moment - max([progress.at, *heard]))
        ended = (
            progress.at is not None and progress.code is None and (quiet or 0) > QUIET_S and not _at_work(self.folder)
        )
        seen = (progress.at, ended, *(_stamp(self.folder / name) for name in _CHANGES))
        if seen != self._seen:
            self._drawn, self._seen = self._draw(ended), seen
        left = {
            "round": within.seconds_left(progress, steps, moment),
            "phase": progress.seconds_left(moment),
        }
        known = [] if ended else [f"about {duration(one)} left in this {name}" for name, one in left.items() if one]
        return self._told(
            self._drawn,
            " · ".join(known),
            f"last heard of {duration(quiet)} ago" if quiet is not None and progress.code is None else "",
            {} if ended else within.within_round(progress, steps, moment),
        )

    def _told(self, page: str, left: str, quiet: str, sites: dict[str, Any] | None = None) -> dict[str, Any]:
        version = hashlib.sha256(page.encode()).hexdigest()[:16]
        return {"page": page, "version": version, "left": left, "quiet": quiet, "sites": sites or {}}

    def _draw(self, ended: bool) -> str:
        try:
            run = read_run(self.folder)
        except UserError as error:
            if (self.folder / "config.yaml").is_file():
                return _render(error=str(error))
            run = Run(self.folder, {}, "", [], {})  # it has just begun
        return _render(**_shown(run, self._progress, ended))


def _shown(run: Run, progress: Progress, ended: bool) -> dict[str, Any]:
    """What the template shows of a run."""
    state, kind = _state(run, progress, ended)
    overall = mapping(run.summary.get("global"))
    before = progress.doing if progress.code is None else ""
    return {
        "error": "",
        "study": str(run.summary.get("study") or run.config.get("study") or progress.study or run.folder.name),
        "method": "" if progress.method == "federated" else progress.method,
        "state": state,
        "kind": kind,
        "text": progress.text,
        "where": _where(run, progress),
        "doing": before if kind == "works" else "",
        "said": [text for text in (progress.said or [progress.last_message]) if text][-_SAID:],
        "tiles": [
            {"name": name, "value": show_figure(number(overall.get(key)))}
            for name, key in (("Dice, mean over sites", "dice_mean"), ("Dice, worst site", "dice_worst"))
            if number(overall.get(key)) is not None
        ],
        "sites": _sites(run, progress),
        "curves": [course.phase_curves(run, phase) for phase in run.phases],
        "report": (run.folder / "report.html").is_file(),
    }


def _state(run: Run, progress: Progress, ended: bool) -> tuple[str, str]:
    """What a person is told of the run as a whole, and its kind: works, done or broken."""
    if progress.at is None:
        if run.summary:
            return "finished", "done"
        return "not finished; it tells nothing while it works (it was begun by an older release)", "works"
    if progress.code == cli.OK:
        return "finished", "done"
    if progress.code == cli.INTERRUPTED:
        return "interrupted; it can go on with --resume", "broken"
    if progress.code is not None:
        return "stopped by an error", "broken"
    if ended:
        return "ended without a word: no process works on it; it can go on with --resume", "broken"
    return ("running" if progress.study else "beginning, or waiting for sites"), "works"


def _where(run: Run, progress: Progress) -> str:
    if progress.at is None or not progress.phase:
        return course.progress(run) if run.rounds else ""
    return f"{progress.phase}, round {max(progress.round, 1)} of {progress.rounds}"


def _sites(run: Run, progress: Progress) -> list[dict[str, Any]]:
    """A row for each site: what it does, and its last answer."""
    last: dict[str, Mapping[str, Any]] = {}
    training = trained(run)
    for line in run.rounds:
        if line["site"] != ALL_SITES and (line["phase"], line["round"]) in training:
            last[line["site"]] = line
    rows = []
    for site in sorted(set(progress.sites) | set(last)):
        line = last.get(site, {})
        figures = {key: number(mapping(line.get(group)).get(name)) for key, group, name in _OF_ANSWER}
        rows.append(
            {
                "site": site,
                "doing": progress.sites.get(site, "") if progress.code is None else "",
                "answer": f"{line['phase']} {line['round']}" if line else "none yet",
                "reason": str(line.get("reason") or "") if line.get("accepted") is False else "",
                "seconds": number(line.get("seconds")),
                **figures,
            }
        )
    return rows


_OF_ANSWER = (("loss", "train", "loss"), ("dice", "val", "dice"))


def _gone(folder: Path) -> str:
    return _render(error=f"{folder} is no longer there. Nothing more will come; end this page's command with Ctrl-C.")


def _at_work(folder: Path) -> bool:
    """Whether a process holds the run: looked at for a moment, with a lock that others can share."""
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _stamp(path: Path) -> tuple[int, int]:
    try:
        about = path.stat()
    except OSError:
        return 0, 0
    return about.st_mtime_ns, about.st_size


def _render(**shown: Any) -> str:
    shown = {"error": "", **shown}
    return template(Path(__file__).parent / "templates", "live.html.j2", {"figure": show_figure, "time": _time}).render(
        shown
    )


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)
