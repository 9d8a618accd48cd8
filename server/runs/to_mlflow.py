"""A run as a run of MLflow: experiment STUDY; settings as parameters, figures as metrics at their rounds.

A figure is `PHASE/NAME` over all sites and `PHASE/NAME/SITE` of one; those of summary.json are `test/NAME`. A run
that is resumed goes on in MLflow too: it is found by its key. A round trained again is written again, at its step.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dusss_core.errors import UserError
from feddusss import __version__, configfile
from server.runs.lines import ALL_SITES, final_figures, with_bytes
from server.runs.output import Output
from server.study.config import StudyConfig

if TYPE_CHECKING:
    from mlflow.entities import Metric

KEY = "feddusss.run_key"
"""The tag by which a run is found again."""
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing but the figures goes anywhere
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # a round waits for it
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
_AT_ONCE = 90
"""Figures or parameters of a request; MLflow takes 100 parameters."""


class MLflow(Output):
    """The run of MLflow that belongs to the run in `folder`.

    Raises:
        UserError: the store cannot be reached or written to.
    """

    def __init__(self, study: StudyConfig, folder: Path, run_key: str):
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow import MlflowClient

            uri, artifacts = _store(study)
            self._client = MlflowClient(tracking_uri=uri)
            self._run_id = self._found(study, run_key, artifacts) or self._begun(study, folder, run_key)
        except Exception as error:  # of the library, of sqlalchemy, of the network
            raise UserError(
                f"output.mlflow: {study.output.mlflow}: {type(error).__name__}: {str(error)[:300]}",
                "mend the folder or the URI, see to it that its server answers, or leave output.mlflow out",
            ) from error
        self._finished: bool | None = None
        """None: nothing was added."""

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        figures = [
            self._metric(line["phase"], name, line["site"], value, line["round"])
            for line in lines
            for name, value in with_bytes(line).items()
        ]
        if self._finished is None:
            self._client.update_run(self._run_id, status="RUNNING")
        self._finished = False
        self._log(metrics=figures)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._log(
            metrics=[
                self._metric("test", name, site, value, 0)
                for site, figures in final_figures(summary).items()
                for name, value in figures.items()
            ]
        )
        self._finished = True

    def close(self) -> None:
        if self._finished is not None:
            self._client.set_terminated(self._run_id, "FINISHED" if self._finished else "FAILED")

    def _found(self, study: StudyConfig, run_key: str, artifacts: str | None) -> str | None:
        """The run that was begun before with this key; its experiment is made if it is not there."""
        experiment = self._client.get_experiment_by_name(study.study)
        if experiment is None:
            self._experiment = self._client.create_experiment(study.study, artifact_location=artifacts)
            return None
        self._experiment = experiment.experiment_id
        runs = self._client.search_runs([self._experiment], f"tags.`{KEY}` = '{run_key}'", max_results=1)
        return runs[0].info.run_id if runs else None

    def _begun(self, study: StudyConfig, folder: Path, run_key: str) -> str:
        from mlflow.entities import Param

        tags = {KEY: run_key, "feddusss.release": __version__, "feddusss.folder": str(folder)}
        run = self._client.create_run(self._experiment, run_name=folder.name, tags=tags)
        self._run_id = run.info.run_id
        settings = configfile.flat(study.model_dump(mode="json", exclude={"deployment", "output"}))
        self._log(params=[Param(_name(key), str(value)[:500]) for key, value in settings.items()])
        return self._run_id

    def _metric(self, part: str, name: str, site: str, value: float, step: int) -> Metric:
        from mlflow.entities import Metric

        key = f"{part}/{name}" if site == ALL_SITES else f"{part}/{name}/{site}"
        return Metric(_name(key), float(value), int(time.time() * 1000), step)

    def _log(self, *, metrics: Sequence[Any] = (), params: Sequence[Any] = ()) -> None:
        for some in _pieces(metrics):
            self._client.log_batch(self._run_id, metrics=some)
        for some in _pieces(params):
            self._client.log_batch(self._run_id, params=some)


def _store(study: StudyConfig) -> tuple[str, str | None]:
    """Where MLflow keeps its runs, and in which folder it would keep files of theirs; None: where it chooses."""
    if study.output.mlflow_folder is None:
        return str(study.output.mlflow), None
    folder = Path(study.output.mlflow_folder).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()


def _name(text: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w./ :-]", "_", text, flags=re.ASCII)


def _pieces(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]
