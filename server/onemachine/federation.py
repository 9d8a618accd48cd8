"""A study from the first certificate to its report, with real processes on this machine that are all ended with it."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dusss_core.errors import DISK, UserError
from feddusss import cli
from server.deployment.control import Control, ControlFailed, SuperLinkAway, find_connection
from server.deployment.run import look_on, submit
from server.onemachine.layout import Layout, lay_out, shown
from server.onemachine.prepare import opened, prepare
from server.onemachine.processes import Processes, stopped_by_signals
from server.runs.events import Reporter

_START_S = 180.0
"""For something that takes seconds on an idle machine."""
_POLL_S = 0.3
_FULL_MB = 20
"""Free disk with less of which a study cannot go on: a round's models, and the SuperLink's copies of them."""
_SUPERLINK = "the SuperLink"


class Ended(Exception):
    """A process without which the federation cannot go on has ended."""


def prepare_only(
    out: Path | None, port: int | None, overrides: Iterable[str], *, force: bool, reporter: Reporter
) -> int:
    """Make what the processes need, and print how to start them by hand; the arguments are those of `run_federation`.

    The SuperLink runs for some seconds, to be told the hospitals' keys: so clients can be started before it.

    Returns:
        The exit code.
    """
    layout = lay_out(out, port, overrides)
    with stopped_by_signals(), opened(layout, resume=True, force=force):
        prepare(layout, reporter.on_message)
        again = layout.command("--prepare")
        code = _with_processes(layout, again, reporter, lambda processes: _tell_the_keys(layout, processes, reporter))
    if code == cli.OK:
        print(layout.by_hand())
    return code


def run_federation(
    out: Path | None,
    port: int | None,
    overrides: Iterable[str],
    *,
    resume: bool,
    force: bool,
    reporter: Reporter,
) -> int:
    """Start a SuperLink and the hospitals' clients, run the study, and end them.

    Args:
        out: folder of everything that is written; None: runs/federation.
        port: of the SuperLink; None: the one that the hospitals' files name.
        resume: go on with the study that is in `out`.
        force: delete all that is in `out`.

    Returns:
        The exit code: 0 the study is done, 1 it failed, 2 there is something to mend.

    Raises:
        UserError: something stands in the way; nothing was started.
        KeyboardInterrupt: Ctrl-C, SIGTERM or a closed terminal; everything has been ended.
    """
    began = time.monotonic()
    layout = lay_out(out, port, overrides)
    with stopped_by_signals(), opened(layout, resume=resume, force=force):
        prepare(layout, reporter.on_message)
        again = layout.command("--resume")
        code = _with_processes(
            layout, again, reporter, lambda processes: _run_study(layout, processes, resume, reporter)
        )
    if code == cli.OK:
        reporter.on_message(
            f"all processes are stopped; {time.monotonic() - began:.0f} s in all\n"
            f"report: {(layout.out / 'report.html').as_uri()}"
        )
    return code


def _with_processes(layout: Layout, again: str, reporter: Reporter, work: Callable[[Processes], int]) -> int:
    """`work`, and the end of all processes that it has started; `again`: the command with which to go on."""
    try:
        with Processes(layout.out) as processes:
            return work(processes)
    except KeyboardInterrupt:
        reporter.on_message(f"interrupted: all processes are stopped; go on: {again}")
        raise
    except Ended as ended:
        reporter.on_message(f"failed: {ended}\n  -> all processes are stopped; when that is mended: {again}")
        return cli.FAILED


def _tell_the_keys(layout: Layout, processes: Processes, reporter: Reporter) -> int:
    with _superlink(layout, processes, reporter):
        return cli.OK


def _run_study(layout: Layout, processes: Processes, resume: bool, reporter: Reporter) -> int:
    coordinator, told = layout.coordinator.path, set()
    with _superlink(layout, processes, reporter) as control:
        _start_hospitals(layout, processes, control, reporter)
        run_id, _ = submit(
            control,
            layout.study,
            coordinator=coordinator,
            out=layout.out,
            resume=resume,
            force=False,
            reporter=reporter,
        )
        try:
            code = look_on(
                control, run_id, layout.out, layout.command("--resume"), reporter,
                lambda: _look_after(layout, processes, told, reporter),
            )  # fmt: skip
        except BaseException:
            with suppress(SuperLinkAway, ControlFailed):
                control.stop(run_id)
            raise
        finally:
            reporter.close()
            reporter.on_message("stopping the hospitals and the SuperLink")
    if code != cli.OK:
        _check_disk_is_not_full(layout)
    return code


def _check_disk_is_not_full(layout: Layout) -> None:
    """The hospitals' disk is that of the coordinator here. Where it is full they tell the study that something is
    wrong, and what it is in their own logs alone, for which there is no room.

    Raises:
        UserError: it is full.
    """
    if (free := shutil.disk_usage(layout.out).free // 10**6) < _FULL_MB:
        again = layout.command("--resume")
        raise UserError(
            f"{shown(layout.out)}: the disk is full, with {free} MB left", f"free some, then: {again}", DISK
        )


@contextmanager
def _superlink(layout: Layout, processes: Processes, reporter: Reporter) -> Iterator[Control]:
    """Start it; it answers, and start.sh has handed it the hospitals' keys: an unknown client would be turned away."""
    coordinator = layout.coordinator.path
    processes.start(_SUPERLINK, [str(coordinator / "start.sh")], coordinator / "superlink.log")
    with Control(find_connection(coordinator)) as control:

        def knows_all() -> bool:
            _check_runs(processes, _SUPERLINK)
            with suppress(SuperLinkAway):
                return set(layout.sites) <= {node.name for node in control.nodes()}
            return False

        _wait(knows_all, f"{_SUPERLINK} does not answer", coordinator / "superlink.log")
        reporter.on_message(f"{_SUPERLINK} answers at https://{control.address}, and knows the hospitals' keys")
        yield control


def _start_hospitals(layout: Layout, processes: Processes, control: Control, reporter: Reporter) -> None:
    for site in layout.sites:
        command = [sys.executable, "-m", "client", *layout.site_arguments(site)]
        processes.start(site, command, layout.hospital(site) / "client.log")
    online: set[str] = set()

    def are_online() -> bool:
        for site in layout.sites:
            _check_runs(processes, site)
        with suppress(SuperLinkAway):  # on a machine that is too busy to answer
            for node in control.nodes():
                if node.status == "online" and node.name not in online:
                    online.add(node.name)
                    reporter.on_message(f"{node.name} is connected")
        return set(layout.sites) <= online

    _wait(are_online, "not all hospitals are connected", layout.out / "hospitals")


def _look_after(layout: Layout, processes: Processes, told: set[str], reporter: Reporter) -> None:
    """The study does without a hospital; without the SuperLink there is none."""
    _check_runs(processes, _SUPERLINK)
    for site in layout.sites:
        if processes.ended(site) is not None and site not in told:
            told.add(site)
            reporter.on_message(f"{_ending(processes, site)}; the study goes on without it")


def _check_runs(processes: Processes, name: str) -> None:
    if processes.ended(name) is not None:
        raise Ended(f"{_ending(processes, name)}. It wrote last:\n{processes.last_words(name)}")


def _ending(processes: Processes, name: str) -> str:
    code = processes.ended(name)
    how = f"exit code {code}" if code >= 0 else f"signal {-code}"
    return f"{name} has ended ({how})" if name == _SUPERLINK else f"the client of {name} has ended ({how})"


def _wait(condition: Callable[[], bool], problem: str, log: Path) -> None:
    give_up = time.monotonic() + _START_S
    while not condition():
        if time.monotonic() > give_up:
            raise UserError(f"{problem} within {_START_S:.0f} s", f"see what is told in {shown(log)}")
        time.sleep(_POLL_S)
