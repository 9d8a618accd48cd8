"""The commands of `python -m server` that speak with a SuperLink about studies: run, status, stop, nodes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feddusss import cli

if TYPE_CHECKING:
    from server.deployment.control import FlowerRun
    from server.runs.eventlog import Progress

_FIGURES = ("train.loss", "val.loss", "val.dice", "dice_mean", "dice_worst")


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add run, status, stop and nodes to the parser of `python -m server`."""
    run = commands.add_parser("run", help="run a study with the hospitals that are connected to the SuperLink")
    run.add_argument("study", help="a study file, or the name of a preset")
    run.add_argument("--out", type=Path, help="folder of the run (runs/STUDY)")
    cli.add_resume_or_force(run, "go on with the run that is in --out", "delete the run that is in --out")
    run.add_argument(
        "--without", action="append", default=[], metavar="SITE", help="with --resume: a site that is not waited for"
    )
    run.add_argument("--also", action="append", default=[], metavar="SITE", help="with --resume: a site that joins")
    _finish(run, _run, overrides=True)

    status = commands.add_parser("status", help="the runs of the SuperLink, or one run closely")
    status.add_argument("run", nargs="?", help="a run's id or its folder")
    status.add_argument("--follow", action="store_true", help="look on until it ends")
    status.add_argument("--json", action="store_true", help="all of it as JSON")
    _finish(status, _status)

    stop = commands.add_parser("stop", help="stop a run; it can be resumed")
    stop.add_argument("run", help="a run's id or its folder")
    _finish(stop, _stop)

    nodes = commands.add_parser("nodes", help="the registered sites, and which are connected")
    nodes.add_argument("--json", action="store_true", help="all of it as JSON")
    _finish(nodes, _nodes)

    metrics = commands.add_parser("metrics", help="runs and sites for Prometheus, on loopback, until Ctrl-C")
    metrics.add_argument("--port", type=int, default=9464, help="port on 127.0.0.1 (9464)")
    _finish(metrics, _metrics)


def _finish(parser: argparse.ArgumentParser, command, *, overrides: bool = False) -> None:
    parser.add_argument(
        "--coordinator",
        type=Path,
        default=Path("kits") / "coordinator",
        metavar="DIR",
        help="the coordinator's folder, made by provision (kits/coordinator)",
    )
    cli.add_common_arguments(parser, overrides=overrides)
    parser.set_defaults(command=command)


def _run(arguments: argparse.Namespace) -> int:
    from server.deployment.run import run
    from server.report.progress import make_reporter

    return run(
        arguments.study,
        arguments.overrides,
        coordinator=arguments.coordinator,
        out=arguments.out,
        resume=arguments.resume,
        force=arguments.force,
        without=arguments.without,
        also=arguments.also,
        reporter=make_reporter(),
    )


def _status(arguments: argparse.Namespace) -> int | None:
    from server.deployment.control import connected
    from server.deployment.run import find_run, follow
    from server.deployment.watching import state_of_run
    from server.report.progress import make_reporter
    from server.runs.eventlog import progress_of

    with connected(arguments.coordinator) as control:
        if arguments.json:
            runs = control.runs() if arguments.run is None else [find_run(control, arguments.run)]
            print(json.dumps({"runs": [state_of_run(run) for run in runs]}))
            return None
        if arguments.run is None:
            _print_table(
                ("run", "study", "state", "phase", "round", "sites", "figures", "folder"),
                [_row(run, progress_of(run.out, run.id)) for run in control.runs()],
                "no runs yet",
            )
            return None
        run = find_run(control, arguments.run)
        if arguments.follow:
            return follow(control, run.id, run.out, arguments.coordinator, make_reporter())
    _print_run(run, progress_of(run.out, run.id), arguments.coordinator)
    return None


def _stop(arguments: argparse.Namespace) -> None:
    from dusss_core.errors import UserError
    from server.deployment.control import connected
    from server.deployment.run import find_run, resume_command

    with connected(arguments.coordinator) as control:
        run = find_run(control, arguments.run)
        if run.finished or not control.stop(run.id):
            outcome = control.run(run.id).outcome
            raise UserError(f"run {run.id} has ended already ({outcome})", "nothing is to be done")
    print(f"run {run.id} is stopped; go on with it: {resume_command(run.out, arguments.coordinator)}")


def _nodes(arguments: argparse.Namespace) -> None:
    from server.deployment.control import connected
    from server.deployment.folder import CoordinatorFolder
    from server.deployment.registry import load_registry
    from server.deployment.watching import state_of_sites

    with connected(arguments.coordinator) as control:
        nodes = control.nodes()
    sites = state_of_sites(nodes, load_registry(CoordinatorFolder(arguments.coordinator)))
    if arguments.json:
        print(json.dumps({"sites": sites}))
        return
    rows = [
        (
            site["site"],
            site["state"],
            _seen(site),
            "-" if site["node"] is None else str(site["node"]),
            site["key"] or "-",
        )
        for site in sites
    ]
    _print_table(("site", "state", "last seen", "node", "key"), rows, "no sites are registered")


def _metrics(arguments: argparse.Namespace) -> int:
    from feddusss.monitoring import serve
    from server.deployment.control import find_connection
    from server.deployment.watching import Collector

    find_connection(arguments.coordinator)  # a mistake in the folder is told now, and not at the first scrape
    serve(Collector(arguments.coordinator), arguments.port)
    return cli.OK


def _seen(site: dict[str, Any]) -> str:
    from server.deployment.watching import moment

    return "-" if site["node"] is None else moment(site["seen"])


def _row(run: FlowerRun, progress: Progress) -> tuple[str, ...]:
    from server.deployment.watching import study_in

    taking_part = sum(not doing.startswith("left out") for doing in progress.sites.values())
    return (
        str(run.id),
        progress.study or study_in(run.out),
        _state(run) + _waiting(run, progress),
        progress.phase or "-",
        f"{progress.round}/{progress.rounds}" if progress.rounds else "-",
        f"{taking_part} of {len(progress.sites)}" if progress.sites else "-",
        _figures(progress) or "-",
        str(run.out),
    )


def _print_run(run: FlowerRun, progress: Progress, coordinator: Path) -> None:
    from server.deployment.run import resume_command
    from server.deployment.watching import moment, study_in
    from server.runs.eventlog import progress_of

    lines = [f"run {run.id}: {_state(run)}, began {moment(run.began)}", f"folder: {run.out}"]
    place = f"study {progress.study or study_in(run.out)}: {progress.phase or 'before its first round'}"
    place += f", round {progress.round} of {progress.rounds}" if progress.rounds else ""
    # what it was about, and said last, is past when it has ended
    lines.append(place + (f" ({progress.doing})" if progress.doing and not run.finished else ""))
    lines += [f"  {site}: {doing or 'takes part'}" for site, doing in sorted(progress.sites.items())]
    if progress.study and not run.finished:  # before it, the last messages tell of them
        lines += [f"  {node}: takes no part: {why}" for node, why in sorted(progress.outside.items())]
    lines += [f"figures: {_figures(progress)}"] if _figures(progress) else []
    if not run.finished:
        said = progress.said or ([progress.last_message] if progress.last_message else [])
        lines += [f"last message: {said[0]}"] if len(said) == 1 else [f"  {text}" for text in said]
    if progress.code is not None:
        lines.append(f"ended with code {progress.code}: {progress.text or 'done'}")
    elif run.finished and run.details:
        lines.append(run.details)
    if run.finished and run.outcome != "completed" and progress_of(run.out).run_id in (0, run.id):
        lines.append(f"go on with it: {resume_command(run.out, coordinator)}")
    print("\n".join(lines))


def _state(run: FlowerRun) -> str:
    return run.outcome if run.finished and run.outcome else run.status


def _waiting(run: FlowerRun, progress: Progress) -> str:
    """Which sites work for another study meanwhile."""
    waiting = [doing.removeprefix("waiting: ") for doing in progress.sites.values() if doing.startswith("waiting: ")]
    return f" (waiting: {', '.join(waiting)})" if waiting and not run.finished else ""


def _figures(progress: Progress) -> str:
    shown = {name: progress.figures[name] for name in _FIGURES if progress.figures.get(name) is not None}
    return "  ".join(f"{name} {value:.4f}" for name, value in shown.items())


def _print_table(heading: tuple[str, ...], rows: list[tuple[str, ...]], none: str) -> None:
    if not rows:
        print(none)
        return
    widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]
    for row in [heading, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
