"""The ServerApp: what `flwr run` starts, on Flower's simulation or on a SuperLink with real hospitals.

Settings of the run (`[tool.flwr.app.config]`, or `flwr run . -c 'study="configs/qata.yaml"'`):
`study`: preset or path of a study file; `out`: folder of the run; `overrides`: `a.b=c` settings with blanks between.
A run that is in `out` already is gone on with: Flower itself cannot resume.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or go on with, the study that the run's settings name."""
    from server.config import load_study
    from server.coordinator import Coordinator
    from server.runfolder import check_run, open_run

    settings = context.run_config
    study = load_study(str(settings["study"]), str(settings.get("overrides", "")).split())
    # absolute, since sites of the simulation run in other processes and other folders
    out = Path(str(settings["out"])).expanduser().absolute()
    resumed = check_run(out, study, resume=True) is not None
    if _is_simulated(grid):
        study = _with_simulated_sites(study, out, resumed)
    Coordinator(grid, study, open_run(out, study, resume=True)).run()
    _write_report(out)


def _is_simulated(grid: Grid) -> bool:
    from flwr.superlink.grid.inmemory_grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)


def _with_simulated_sites(study, out: Path, resumed: bool):
    from server.simulation.materialise import materialise

    files = materialise(study, out, keep=resumed)
    federation = study.federation.model_copy(update={"sites": sorted(file.parent.name for file in files)})
    return study.model_copy(update={"federation": federation})


def _write_report(out: Path) -> None:
    from server.report import write_report

    write_report(out)
