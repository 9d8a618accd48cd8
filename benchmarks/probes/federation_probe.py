"""One federation whose sites do not train, and what it costs: python federation_probe.py SETTINGS.json

Run by `benchmarks/federation.py`, in a process of its own, with PYTHONPATH naming the checkout whose code is measured
and this folder: so one probe measures checkouts of different ages, and nothing that the command has loaded counts.
A site answers as ever - door, state, audit log - but for `train_round`, which makes one step of the optimiser with
made-up gradients, and `validate`, which gives a made-up figure. What these two take is "training", and no bookkeeping.

SETTINGS: {"sites", "rounds", "width", "federation", "data", "folder", "workers"}. Prints one line of JSON, the last.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import shares as parts
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

BUILDING = 3
"""Rounds that do not count."""


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Run one federation. Returns its figures."""
    import torch

    torch.set_num_threads(1)  # so that the processor time of a thread is that of its work
    folder = Path(settings["folder"])
    study = _study(settings)
    files = _sites(folder / "sites", Path(settings["data"]), settings["sites"])
    app = WithoutTraining()
    missing = app.shares.install() if settings["shares"] else []
    watch = _watch(app.shares)
    run = _module("server.runs.runfolder", "server.runfolder").open_run(folder / "run", study)
    grid = _grid(app, files, settings["workers"])
    coordinator = _module("server.rounds.coordinator", "server.coordinator").Coordinator(
        grid, study, run, reporter=watch, wait_s=0
    )
    began = watch.now()
    with app.shares.part((parts.COORDINATOR, parts.OTHER)):
        coordinator.run()
    whole = [after - before for after, before in zip(watch.now(), began, strict=True)]
    grid.close()
    return {
        **watch.figures(),
        "study_wall_s": whole[0],
        "study_cpu_s": whole[1],
        "peak_mb": _peak_mb(resource.RUSAGE_SELF),
        "peak_of_a_worker_mb": _peak_mb(resource.RUSAGE_CHILDREN) if settings["workers"] > 1 else None,
        "not_found": [": ".join(key) for key in missing],
    }


class WithoutTraining(ClientApp):
    """The ClientApp of the hospitals, whose trainers do not train. It goes to worker processes too."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = parts.Shares()
        _replace_training()

    def __call__(self, message: Message, context: Context) -> Message:
        from client.app import app

        with self.shares.part((parts.SITE, parts.OTHER)):
            return app(message, context)

    def __reduce__(self) -> tuple[type, tuple]:
        return WithoutTraining, ()


def _replace_training() -> None:
    from dusss_core import training  # its subclasses of PhaseTrainer are all there after this
    from dusss_core.training.trainer import PhaseTrainer

    def train_round(self: PhaseTrainer, round: int) -> dict[str, float]:
        # one step: the optimiser's moments are there and change, as they do in training, and so do the weights
        import torch

        for parameter in self.optimizer.param_groups[0]["params"]:
            parameter.grad = torch.full_like(parameter, 1e-3 * round)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += self.steps_per_round
        return {"loss": 1.0 / round, "n_steps": float(self.steps_per_round)}

    def validate(self: PhaseTrainer) -> dict[str, float]:
        return {"dice": 0.5, "iou": 0.4}

    PhaseTrainer.train_round = train_round
    for kind in (training.Segmenter, training.Pretrainer):
        kind.validate = validate


def _watch(shares: parts.Shares) -> Any:
    reporter = _module("server.runs.events", "server.events").Reporter

    class Watch(reporter):
        """Takes the time at the end of each round. The first three do not count: in the first one sites build what they
        keep, and up to the third each state needs fresh room on the disk."""

        def __init__(self) -> None:
            self.ends: list[tuple[float, float]] = []
            self.taken: list[dict[str, dict[str, float]]] = []
            self.bytes: list[tuple[float, float]] = []
            self.refused: list[str] = []

        def now(self) -> tuple[float, float]:
            return time.perf_counter(), time.process_time()

        def on_round_end(self, phase: str, round: int, metrics: Any, best_round: int | None) -> None:
            self.ends.append(self.now())
            self.taken.append(shares.taken())
            self.bytes.append((metrics["bytes_down"], metrics["bytes_up"]))

        def on_site_refused(self, site: str, reason: str) -> None:
            self.refused.append(f"{site}: {reason}")

        def on_message(self, text: str) -> None:
            print(text, file=sys.stderr)

        def figures(self) -> dict[str, Any]:
            assert not self.refused, self.refused[:3]
            first = min(BUILDING, len(self.ends) - 1)
            counted, ends = len(self.ends) - first, self.ends[first - 1 :]
            wall, cpu = ([after[i] - before[i] for before, after in pairwise(ends)] for i in (0, 1))
            by_name = {
                kind: {
                    name: (seconds - self.taken[first - 1][kind].get(name, 0.0)) / counted
                    for name, seconds in self.taken[-1][kind].items()
                }
                for kind in ("cpu", "wall")
            }
            return {
                "round_wall_s": wall,
                "round_cpu_s": cpu,
                "shares_cpu_s": by_name["cpu"],
                "shares_wall_s": by_name["wall"],
                "bytes_down": self.bytes[-1][0],
                "bytes_up": self.bytes[-1][1],
            }

    return Watch()


def _study(settings: dict[str, Any]) -> Any:
    values = {
        "study": "noop",
        "image": {"size": 32},
        "method": {"preset": "mean_teacher"},
        "student": {"width": settings["width"]},
        "segment": {"rounds": settings["rounds"], "batch": 2, "epochs": 1, "patience": settings["rounds"]},
        "federation": {"min_sites": settings["sites"], **settings["federation"]},
    }
    file = Path(settings["folder"]) / "study.yaml"
    file.write_text(json.dumps(values))  # JSON is YAML
    return _module("server.study.config", "server.config").load_study(str(file), [])


def _sites(folder: Path, data: Path, count: int) -> list[Path]:
    """Sites with the same few pictures, each with its own state."""
    files = []
    for number in range(count):
        home = folder / f"site_{number:04d}"
        home.mkdir(parents=True)
        values = {"site": home.name, "data": {"manifest": str(data)}, "state_dir": "state", "device": "cpu"}
        if (
            "min_records" in importlib.import_module("sites.config").LimitsConfig.model_fields
        ):  # an older commit has none
            values["limits"] = {"min_records": 1, "min_labelled_per_step": 1}
        files.append(home / "site.yaml")
        files[-1].write_text(json.dumps(values))
    return files


def _grid(app: ClientApp, files: list[Path], workers: int) -> Any:
    if workers > 1:
        return importlib.import_module("server.simulation.workers").WorkerGrid(app, files, workers=workers, threads=1)
    return importlib.import_module("server.simulation.inprocess").InProcessGrid(app, files)


def _module(*names: str) -> Any:
    """The first of the modules that this checkout has."""
    return importlib.import_module(next(name for name in names if parts.is_here(name)))


def _peak_mb(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
