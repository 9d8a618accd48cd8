"""Where the figures of a run go: the files of its folder always, TensorBoard and MLflow where the study asks for them.

One interface, `Output`: whoever runs a study hands figures to `Outputs` and knows of no kind.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dusss_core.errors import DISK, UserError
from dusss_core.files import write_json, write_text
from dusss_core.phases import Phase
from server.runs.lines import metrics_lines
from server.runs.output import Output
from server.study.config import StudyConfig


class Files(Output):
    """metrics.jsonl and summary.json of the run in `folder`."""

    def __init__(self, folder: Path):
        self._metrics, self._summary = folder / "metrics.jsonl", folder / "summary.json"

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """They are on the disk when this returns.

        Raises:
            UserError: disk full.
        """
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        try:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{self._metrics}: could not be written: {error.strerror or error}",
                "free disk space, then start again with --resume",
                DISK,
            ) from error

    def drop_after(self, phase: Phase, round: int) -> None:
        if not self._metrics.is_file():
            return
        order = list(Phase)
        kept = [
            text
            for text, line in metrics_lines(self._metrics)
            if (order.index(line["phase"]), line["round"]) <= (order.index(phase), round)
        ]
        write_text(self._metrics, "".join(f"{text}\n" for text in kept))

    def damaged(self) -> int:
        """Lines of metrics.jsonl that cannot be read, which `drop_after` drops; not the one that a crash cut off."""
        if not self._metrics.is_file():
            return 0
        lines = self._metrics.read_bytes().split(b"\n")[:-1]
        return sum(bool(line.strip()) for line in lines) - sum(1 for _ in metrics_lines(self._metrics))

    def finish(self, summary: Mapping[str, Any]) -> None:
        write_json(self._summary, summary)


class Outputs(Output):
    """All outputs of a run. Its own files come first, and an error there ends the study; any other output that fails is
    told of and done without.

    Args:
        files: those of the run's folder.
        tell: told what a person should read.
    """

    def __init__(self, files: Files, tell: Callable[[str], None] = lambda text: None):
        self.tell = tell
        self._files = files
        self._more: dict[str, Output] = {}

    def open(self, study: StudyConfig, folder: Path, run_key: str) -> None:
        """Begin with the outputs that the study asks for.

        Raises:
            UserError: one is not installed, or cannot be written to.
        """
        check(study)
        if study.output.tensorboard:
            from server.runs.to_tensorboard import TensorBoard

            self._more["output.tensorboard"] = TensorBoard(folder / "tensorboard")
        if study.output.mlflow is not None:
            from server.runs.to_mlflow import MLflow

            self._more["output.mlflow"] = MLflow(study, folder, run_key)

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._each("add", list(lines))

    def drop_after(self, phase: Phase, round: int) -> None:
        if damaged := self._files.damaged():
            self.tell(f"warning: metrics.jsonl: lines that cannot be read: {damaged}; what they told is lost")
        self._each("drop_after", phase, round)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._each("finish", summary)

    def close(self) -> None:
        self._each("close")
        self._more.clear()

    def _each(self, method: str, *arguments: Any) -> None:
        getattr(self._files, method)(*arguments)
        for key, output in list(self._more.items()):
            try:
                getattr(output, method)(*arguments)
            except Exception as error:  # whatever its library raises: the study is worth more
                del self._more[key]
                what = f"{type(error).__name__}: {str(error)[:300]}"
                self.tell(f"warning: {key}: given up for the rest of this run, which goes on: {what}")


def check(study: StudyConfig) -> None:
    """See whether what the study asks for is installed.

    Raises:
        UserError: it is not.
    """
    wanted = {"tensorboard": study.output.tensorboard, "mlflow": study.output.mlflow is not None}
    for name, asked in wanted.items():
        if asked and importlib.util.find_spec(name) is None:
            raise UserError(
                f"output.{name}: {name} is not installed", f"pip install 'feddusss[{name}]', or leave output.{name} out"
            )
