"""One place where the figures of a run go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dusss_core.phases import Phase


class Output:
    """Takes the figures of a run. Every method does nothing."""

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """The lines of metrics.jsonl of a round."""

    def drop_after(self, phase: Phase, round: int) -> None:
        """Rounds after `round` of `phase`, and later phases, will be trained again."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """What summary.json holds."""

    def close(self) -> None:
        """No more comes, possibly because of an error."""
