"""The same apps on Flower's own simulation, for many cores, GPUs or machines: sites work side by side on Ray."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from dusss_core.errors import UserError
from server.rounds.coordinator import Coordinator
from server.runs.events import Reporter
from server.runs.runfolder import RunFolder
from server.simulation.materialise import simulation_of
from server.study.config import StudyConfig

_NODES_JOIN_S = 120.0


def federate_on_ray(
    study: StudyConfig, run: RunFolder, site_files: Sequence[Path], reporter: Reporter, method: str
) -> dict[str, Any]:
    """Run a study's federation on Ray.

    Raises:
        UserError: Ray is not installed; and what the coordinator raises.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("--engine ray: Ray is not installed", "pip install 'feddusss[ray]', or leave --engine out")
    from flwr.simulation import run_simulation

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    result: dict[str, Any] = {}
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        names = [file.parent.name for file in site_files]
        coordinator = Coordinator(grid, study, run, reporter=reporter, sites=names, wait_s=_NODES_JOIN_S, method=method)
        try:
            result["summary"] = coordinator.run()
        except Exception as error:
            # Flower would wrap it in an error of its own, and the user would not see what to mend
            result["error"] = error

    cpus = max(1, (os.cpu_count() or 1) // max(1, len(site_files)))
    run_simulation(
        app,
        _SitesByPartition([str(file) for file in site_files], simulation_of(study).threads),
        num_supernodes=len(site_files),
        backend_config={"client_resources": {"num_cpus": cpus, "num_gpus": _share_of_gpu(len(site_files))}},
    )
    if "error" in result:
        raise result["error"]
    return result["summary"]


class _SitesByPartition(ClientApp):
    """The ClientApp of the hospitals; a virtual node is told its site's file as a real node is by its node-config."""

    def __init__(self, site_files: list[str], threads: int | None):
        super().__init__()
        self._site_files = site_files
        self._threads = threads

    def __call__(self, message: Message, context: Context) -> Message:
        from client.app import app

        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)
        partition = int(context.node_config["partition-id"])
        context.node_config["site-config"] = self._site_files[partition]
        return app(message, context)


def _share_of_gpu(sites: int) -> float:
    import torch

    return torch.cuda.device_count() / sites if torch.cuda.is_available() else 0.0
