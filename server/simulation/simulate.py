"""A whole study on one machine: sites written to disk, the federation, the comparisons, the report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from client.state.store import student_path
from dusss_core.errors import UserError
from dusss_core.files import write_json
from dusss_core.phases import Phase
from server.rounds.coordinator import Coordinator, RoundFailed
from server.runs.eventlog import FILE as EVENTS
from server.runs.eventlog import SIMULATION, EventLog
from server.runs.events import PlainReporter, Reporter
from server.runs.runfolder import alone, check_run, open_run, read_study
from server.runs.students import gather_students
from server.simulation.compare import check_methods, compare, why_not
from server.simulation.materialise import forget_sums, materialise, simulation_of
from server.simulation.outside import add_outside_figures
from server.simulation.privacy import check_sites, describe, has_budget, plan_noise
from server.simulation.verdict import verdict
from server.study.config import StudyConfig
from sites.config import load_site
from sites.dataset import SiteData

Engine = Literal["inprocess", "ray"]


def simulate(
    study: StudyConfig,
    out: Path,
    *,
    engine: Engine = "inprocess",
    compare_with: str = "",
    resume: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
    site_files: Sequence[Path] | None = None,
) -> dict[str, Any]:
    """Run a study with simulated sites.

    Args:
        out: folder of the run.
        engine: inprocess: sites work one after another in this process, or side by side in `simulation.workers`
            processes. ray: on Flower's simulation.
        compare_with: comma-separated methods of `server.simulation.compare`; one that cannot run gives its reason in
            the summary, and the others go on.
        resume: go on with the run in `out`, if there is one.
        force: delete the run in `out`; the simulated sites stay if they are the same.
        site_files: sites that are there already; None: those that the study's `simulation` part describes.

    Returns:
        What summary.json holds.

    Raises:
        UserError: what the user must mend.
        RoundFailed: too few usable answers in a round.
    """
    reporter = reporter or PlainReporter()
    methods = check_methods(compare_with)
    simulation = simulation_of(study)
    if has_budget(simulation):
        _check_no_comparison(methods)
        study = plan_noise(study, simulation.privacy)
        reporter.on_message(describe(study, simulation.privacy))
    _prepare(study)
    out = Path(out).absolute()
    with alone(out), ExitStack() as stack:
        resumed = check_run(out, study, resume=resume, force=force) is not None
        if not resumed:
            (out / EVENTS).unlink(missing_ok=True)
        events = stack.enter_context(closing(EventLog(out, also=reporter)))
        stack.enter_context(events.submission(SIMULATION))
        files = materialise(study, out, keep=resumed, spread=engine != "ray") if site_files is None else site_files
        if site_files is None and not resumed:
            forget_sums(files)
        check_sites(study, files)
        try:
            return _simulate(study, out, files, engine, methods, resume, force, events)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_how_to_go_on(out, engine, compare_with)) from None


def _how_to_go_on(out: Path, engine: Engine, compare_with: str) -> str:
    """What a person is told who has interrupted the run in `out`."""
    if not any((out / "checkpoints").glob("*.safetensors")):
        return "no round was saved yet; the same command begins anew"
    more = [
        *(["--engine", engine] if engine != "inprocess" else []),
        *(["--compare", compare_with] if compare_with else []),
    ]
    command = ["python", "-m", "server", "simulate", str(out / "config.yaml"), "--out", str(out), *more, "--resume"]
    return f"go on after the last round that was saved: {shlex.join(command)}"


def _check_no_comparison(methods: Sequence[str]) -> None:
    if methods:
        raise UserError(
            f"--compare {','.join(methods)}: the simulated sites have a privacy budget (simulation.privacy.epsilon); "
            "another method would spend it a second time, or read their pictures without paying",
            "simulate the other method as a study of its own, with another --out: with its own budget, or with "
            "--set simulation.privacy.epsilon=null for the same pictures without one",
        )


def _simulate(
    study: StudyConfig,
    out: Path,
    site_files: Sequence[Path],
    engine: Engine,
    methods: Sequence[str],
    resume: bool,
    force: bool,
    reporter: Reporter,
) -> dict[str, Any]:
    def federate(other: StudyConfig, folder: Path, method: str) -> dict[str, Any]:
        # a comparison lies inside the run's folder: what is there belongs to this run
        again = resume if method == "federated" else True
        run = open_run(folder, other, resume=again, force=force and method == "federated")
        return _federate(other, run, site_files, engine, reporter, method)

    def compared(method: str) -> dict[str, Any]:
        if method in unfit:
            return {"reason": unfit[method]}
        try:
            return compare(method, study, out, site_files, federate, reporter)
        except (UserError, RoundFailed) as error:
            reporter.on_message(f"{method}: not compared: {error}")
            return {"reason": getattr(error, "problem", str(error))}

    # told before hours of training
    unfit = {method: reason for method in methods if (reason := why_not(method, study, site_files))}
    for method, reason in unfit.items():
        reporter.on_message(f"{method}: not compared: {reason}")
    try:
        summary = federate(study, out, "federated")
        _gather_students(study, out, site_files)
        summary = add_outside_figures(summary, study, out, site_files, reporter)
        for method in methods:
            summary["compare"] = {**summary["compare"], method: compared(method)}
            write_json(out / "summary.json", summary)
        summary = _with_verdict(summary, study, out, site_files, reporter)
    finally:
        reporter.close()  # before anything is told of what went wrong
    return summary


def _with_verdict(
    summary: dict[str, Any], study: StudyConfig, out: Path, site_files: Sequence[Path], reporter: Reporter
) -> dict[str, Any]:
    """Say what the comparisons come to, and write summary.json again with it; without any nothing happens."""
    if not summary["compare"] or not (told := verdict(study, summary, _test_patients(study, site_files))):
        return summary
    summary = {**summary, "verdict": told}
    write_json(out / "summary.json", summary)
    reporter.on_message(told)
    return summary


def _test_patients(study: StudyConfig, site_files: Sequence[Path]) -> dict[str, int]:
    """By site, how many patients its test pictures with masks are of: the simulation has the manifests at hand."""
    data = [SiteData(load_site(file), study.image) for file in site_files]
    tested = {one.site.site: [r for r in one.records if r.split == "test" and r.mask is not None] for one in data}
    return {name: len({record.group for record in records}) for name, records in tested.items()}


def evaluate(folder: Path, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Repeat the aggregated evaluation of a simulated run from its checkpoint; summary.json is written again.

    Raises:
        UserError: no run, no simulated sites, or no final student there.
    """
    folder = Path(folder).absolute()
    study, _ = read_study(folder)
    if not (folder / "sites" / "index.json").is_file():
        raise UserError(
            f"{folder}: the simulated sites are not there",
            "evaluate a run of real sites through the coordinator, or simulate it again",
        )
    reporter = reporter or PlainReporter()
    _prepare(study)
    with alone(folder):
        if check_run(folder, study, resume=True) is None:
            # opened, it would begin anew: its files deleted, and its sites' state lost with its key
            raise UserError(
                f"{folder}: there is no final student yet", "finish the run with --resume, then evaluate it"
            )
        site_files = materialise(study, folder, keep=True)
        run = open_run(folder, study, resume=True)
        try:
            with _coordinator(study, run, site_files, reporter, "federated") as coordinator:
                summary = coordinator.evaluate()
            _gather_students(study, folder, site_files)
            summary = add_outside_figures(summary, study, folder, site_files, reporter)
            return _with_verdict(summary, study, folder, site_files, reporter)
        finally:
            reporter.close()


def _federate(
    study: StudyConfig, run, site_files: Sequence[Path], engine: Engine, reporter: Reporter, method: str
) -> dict[str, Any]:
    if engine == "ray":
        from server.simulation.ray import federate_on_ray

        return federate_on_ray(study, run, site_files, reporter, method)
    with _coordinator(study, run, site_files, reporter, method) as coordinator:
        return coordinator.run()


@contextmanager
def _coordinator(
    study: StudyConfig, run, site_files: Sequence[Path], reporter: Reporter, method: str
) -> Iterator[Coordinator]:
    from client.app import app
    from server.simulation import inprocess, workers

    simulation = simulation_of(study)
    if simulation.workers > 1:
        grid = workers.WorkerGrid(app, site_files, reporter, workers=simulation.workers, threads=simulation.threads)
    else:
        grid = inprocess.InProcessGrid(app, site_files, reporter)
    if Phase.PRETRAIN in study.phases():
        import timm  # noqa: F401, takes a second or two; workers that have just been started need as long

    try:
        yield Coordinator(grid, study, run, reporter=reporter, wait_s=0, method=method, cause=grid.cause)
    finally:
        grid.close()


def _gather_students(study: StudyConfig, out: Path, site_files: Sequence[Path]) -> None:
    """The simulated sites' own students, where layers or students stay at the sites, into the run's folder."""
    if not study.local_norm and study.personal.kind == "none":
        return
    _, run_key = read_study(out)
    sites = [load_site(file) for file in site_files]
    gather_students(out, {site.site: student_path(site.state_dir, study.study, run_key) for site in sites})


def _prepare(study: StudyConfig) -> None:
    import logging

    import flwr.app  # noqa: F401, it sets its logger's level when it is imported

    threads = simulation_of(study).threads
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    # Flower's strategies log a line per aggregation, which would break the display
    logging.getLogger("flwr").setLevel(logging.WARNING)
