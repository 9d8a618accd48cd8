"""How many charges of its privacy ledger each site has told of: `ledger_charges.json` in the run's folder.

The largest number goes back to its site with each message. A site whose ledger has fewer was set back to an older copy,
and trains no more (`client.privacy.ledger`). So the number must outlive whatever ends the coordinator: it is on the
disk as soon as it has come, also of an answer that is not taken, and unlike metrics.jsonl it is not cut back to the
last checkpoint when a run is resumed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dusss_core.errors import UserError
from dusss_core.files import write_json
from feddusss import wire
from server.runs.runfolder import CHARGES

if TYPE_CHECKING:
    from flwr.app import Message

_MOST = 2**53
"""A float beyond it does not hold every whole number."""


class Charges:
    """What was told of each site's ledger.

    Args:
        path: where it is kept; None: in memory alone.
        known: what else is known, by site.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, path: Path | None = None, known: Mapping[str, int] | None = None):
        self._path = path
        self._most = _read(path) if path is not None else {}
        for site, count in (known or {}).items():
            self._most[site] = max(self._most.get(site, 0), count)

    def seen(self, site: str) -> dict[str, int]:
        """For a message to a site: the largest number that it has told of."""
        return {"charges": self._most[site]} if site in self._most else {}

    def note(self, site: str, message: Message | None) -> None:
        """Keep the number that came with an answer, whatever else is wrong with that.

        Raises:
            UserError: disk full.
        """
        if message is None or message.has_error():
            return
        told = [record.get(CHARGES) for record in wire.metric_records(message.content).values()]
        counts = [int(count) for count in told if _is_count(count)]
        if counts and max(counts) > self._most.get(site, 0):
            self._most[site] = max(counts)
            if self._path is not None:
                write_json(self._path, self._most)


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 < value <= _MOST and value == int(value)


def _read(path: Path) -> dict[str, int]:
    try:
        return {str(site): int(count) for site, count in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read: {error}",
            "delete it: the run goes on, and until it has trained again, a site's older ledger is not noticed",
        ) from None
