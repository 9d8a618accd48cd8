"""A run as TensorBoard's event files: RUN/tensorboard/SITE/PHASE, and _all/PHASE over all sites: curves of one chart.

A figure is `PHASE/NAME` at its round, as in metrics.jsonl; those of summary.json are `test/NAME`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dusss_core.errors import UserError
from dusss_core.phases import Phase
from server.runs.lines import ALL_SITES, final_figures, with_bytes
from server.runs.output import Output

_ALL = "_all"


class TensorBoard(Output):
    """Event files in `folder`.

    Raises:
        UserError: it cannot be written to.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._writers: dict[str, Any] = {}
        self._again: dict[str, int] = {}
        """Phase -> the round from which on older values, of rounds that are trained again, do not count."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"{folder}: could not be written: {error.strerror or error}",
                "mend the folder or its permissions, or leave output.tensorboard out",
            ) from None

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            figures = {f"{line['phase']}/{name}": value for name, value in with_bytes(line).items()}
            self._write(line["site"], line["phase"], line["round"], figures)
        self._flush()

    def drop_after(self, phase: Phase, round: int) -> None:
        # a phase has a writer of its own, since a new session in a file hides later steps of all its figures
        for later in list(Phase)[list(Phase).index(phase) :]:
            self._again[later] = round + 1 if later == phase else 1

    def finish(self, summary: Mapping[str, Any]) -> None:
        for site, figures in final_figures(summary).items():
            self._write(site, "test", 0, {f"test/{name}": value for name, value in figures.items()})
        self._flush()

    def close(self) -> None:
        for writer in self._writers.values():
            with suppress(OSError):
                writer.close()
        self._writers.clear()

    def _write(self, site: str, part: str, step: int, figures: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in sorted(figures.items())]
        self._writer(site, part).add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _writer(self, site: str, part: str) -> Any:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # names of sites begin with a letter or a figure
        name = _ALL if site == ALL_SITES else re.sub(r"[^A-Za-z0-9_.-]", "_", site)
        if (key := f"{name}/{part}") not in self._writers:
            writer = EventFileWriter(str(self._folder / name / part))
            if (start := self._again.get(part)) is not None:
                started = SessionLog(status=SessionLog.START)
                writer.add_event(Event(wall_time=time.time(), step=start, session_log=started))
            self._writers[key] = writer
        return self._writers[key]

    def _flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()
