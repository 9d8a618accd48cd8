"""The ServerApp: what `python -m server run` and `flwr run` start, with real hospitals or on Flower's simulation.

Settings of the run (`[tool.flwr.app.config]`, or `flwr run . -c 'study="configs/qata.yaml"'`):
`study`: preset or path of a study file; `out`: folder of the run; `overrides`: `a.b=c` settings with blanks between.
A run that is in `out` already is gone on with: Flower itself cannot resume.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dusss_core.errors import UserError
from feddusss import flower
from server.study.config import StudyConfig, load_study

LOCK_WAIT_S = 90.0
"""The ServerApp before this one lives on until it sees that its SuperLink is gone."""

NODES_WAIT_S = 20.0
"""In which Flower's simulation has made its nodes."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or go on with, the study that the run's settings name."""
    from server.runs.eventlog import EventLog
    from server.runs.events import PlainReporter
    from server.runs.runfolder import alone

    settings = context.run_config
    study = load_study(str(settings["study"]), str(settings.get("overrides", "")).split())
    # absolute, since sites of the simulation run in other processes and other folders
    out = Path(str(settings["out"])).expanduser().absolute()
    with alone(out, LOCK_WAIT_S):
        events = EventLog(out, also=PlainReporter())
        with events.submission(context.run_id):
            _run(grid, study, out, events)


def _run(grid: Grid, study: StudyConfig, out: Path, events) -> None:
    from server.rounds.coordinator import Coordinator
    from server.runs.runfolder import open_run

    if not _is_simulated(grid):
        from httpx import ConnectError

        from server.deployment.control import out_of_date
        from server.deployment.grid import PatientGrid
        from server.deployment.initial import first_weights

        run = open_run(out, study, resume=True)
        try:
            Coordinator(PatientGrid(grid), study, run, reporter=events, first=partial(first_weights, out)).run()
        except ConnectError as error:
            if mended := out_of_date(f"the SuperLink does not answer: {error}"):
                raise mended from None
            raise
    else:
        _simulate(grid, study, out, events)
    _write_report(out)


def _is_simulated(grid: Grid) -> bool:
    return isinstance(grid, flower.InMemoryGrid)


def _simulate(grid: Grid, study: StudyConfig, out: Path, events) -> None:
    from server.rounds.coordinator import Coordinator
    from server.runs.runfolder import check_run, open_run
    from server.simulation.materialise import forget_sums, materialise, simulation_of
    from server.simulation.outside import add_outside_figures
    from server.simulation.privacy import check_sites, plan_noise

    study = plan_noise(study, simulation_of(study).privacy)
    resumed = check_run(out, study, resume=True) is not None
    files = materialise(study, out, keep=resumed)
    if not resumed:
        forget_sums(files)
    check_sites(study, files)
    _check_nodes(grid, len(files))
    run = open_run(out, study, resume=True)
    names = [file.parent.name for file in files]
    summary = Coordinator(grid, study, run, reporter=events, sites=names).run()
    add_outside_figures(summary, study, out, files, events)


def _check_nodes(grid: Grid, sites: int) -> None:
    """Flower simulates as many nodes as it is told, which no file of an app can say.

    Raises:
        UserError: fewer nodes than sites.
    """
    give_up = time.monotonic() + NODES_WAIT_S
    while (nodes := len(list(grid.get_node_ids()))) < sites:
        if time.monotonic() > give_up:
            raise UserError(
                f"Flower simulates {nodes} nodes, and the study has {sites} sites",
                f"flwr run . --stream --federation-config num-supernodes={sites}",
            )
        time.sleep(0.2)


def _write_report(out: Path) -> None:
    from server.report.page import write_report
    from server.runs.runfolder import log

    try:
        write_report(out)
    except Exception as error:
        # the study itself is done and saved
        log.warning("no report (%s); write it with: python -m server report %s", type(error).__name__, out)
