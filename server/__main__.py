"""python -m server: simulate a study, run one with real hospitals, evaluate a run, make its report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from feddusss import cli
from server.deployment import administration
from server.deployment.commands import add_commands
from server.onemachine.command import add_command


def main(argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None) -> int:
    """The command line of the coordinator."""
    return cli.run(lambda arguments: arguments.command(arguments), parser or build_parser(), argv)


def build_parser(prog: str = "python -m server") -> argparse.ArgumentParser:
    """The command line, as it is called `prog`."""
    parser = argparse.ArgumentParser(prog, description="The coordinator of a study.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    simulate = commands.add_parser("simulate", help="the whole federation on this machine, with simulated sites")
    simulate.add_argument("study", help="a study file, or the name of a preset (demo)")
    simulate.add_argument("--out", type=Path, help="folder of the run (runs/STUDY)")
    simulate.add_argument(
        "--engine",
        choices=("inprocess", "ray"),
        default="inprocess",
        help="sites one after another in this process, or side by side on Flower's Ray simulation",
    )
    simulate.add_argument(
        "--compare",
        default="",
        metavar="METHOD,...",
        help="also train, on the same sites: local, centralized, a preset (mean_teacher, supervised, ...), or any "
        "method.objective or method.pretraining (bcp, cct, ...)",
    )
    cli.add_resume_or_force(simulate, "go on with the run that is in --out", "delete the run that is in --out")
    cli.add_common_arguments(simulate)
    simulate.set_defaults(command=_simulate)

    add_command(commands)
    add_commands(commands)
    administration.add_commands(commands)

    evaluate = commands.add_parser("evaluate", help="evaluate the final model of a run again")
    evaluate.add_argument("run", type=Path, help="folder of the run")
    cli.add_common_arguments(evaluate, overrides=False)
    evaluate.set_defaults(command=_evaluate)

    report = commands.add_parser("report", help="write a run's report.html again")
    report.add_argument("run", type=Path, help="folder of the run")
    cli.add_common_arguments(report, overrides=False)
    report.set_defaults(command=_report)

    watch = commands.add_parser("watch", help="a page on this machine that follows a run; it only reads")
    watch.add_argument("run", type=Path, help="folder of the run")
    watch.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (any that is free)")
    watch.add_argument("--open", action="store_true", help="also open it in the browser")
    cli.add_common_arguments(watch, overrides=False)
    watch.set_defaults(command=_watch)

    look = commands.add_parser("look", help="a simulation's pictures with what the models mark, also while it trains")
    look.add_argument("run", type=Path, help="folder of the run")
    look.add_argument("--each", type=int, default=2, metavar="N", help="of each site the N worst, median and best (2)")
    look.add_argument("--most", type=int, default=500, metavar="N", help="pictures of each site to look at (500)")
    look.add_argument("--device", default="auto", help="auto (that of each site's file), cpu, cuda, cuda:N or mps")
    cli.add_common_arguments(look, overrides=False)
    look.set_defaults(command=_look)
    return parser


def _simulate(arguments: argparse.Namespace) -> None:
    from server.simulation import forking
    from server.study.config import load_study

    study = load_study(arguments.study, arguments.overrides)
    if arguments.engine == "inprocess":
        forking.warm_up(study)  # before this process begins with imports of its own
    from server.onemachine.processes import stopped_by_signals
    from server.report.progress import make_reporter
    from server.simulation.simulate import simulate

    out = arguments.out or Path("runs") / study.study
    with stopped_by_signals():  # `kill`, as of a batch system whose time is over, is told as Ctrl-C is
        simulate(
            study,
            out,
            engine=arguments.engine,
            compare_with=arguments.compare,
            resume=arguments.resume,
            force=arguments.force,
            reporter=make_reporter(),
        )
    _write_report(out)


def _evaluate(arguments: argparse.Namespace) -> None:
    from server.report.progress import make_reporter
    from server.simulation.simulate import evaluate

    evaluate(arguments.run, reporter=make_reporter())
    _write_report(arguments.run)


def _watch(arguments: argparse.Namespace) -> None:
    from server.report.watch import watch

    watch(arguments.run, arguments.port, open_browser=arguments.open)


def _look(arguments: argparse.Namespace) -> None:
    from server.simulation.look import look

    cli.check_positive(each=arguments.each, most=arguments.most)
    page = look(arguments.run, each=arguments.each, most=arguments.most, device=arguments.device)
    print(f"{page}: it shows pictures, keep it where they may be seen")


def _report(arguments: argparse.Namespace) -> None:
    _write_report(arguments.run)


def _write_report(folder: Path) -> None:
    from server.report.page import write_report

    print(f"report: {write_report(folder)}")


if __name__ == "__main__":
    sys.exit(main())
