"""What came to this site, what left it and what was decided: state_dir/audit.jsonl, one line of JSON per event.

The log is a chain (`client.state.chain` says what that shows and what it cannot show). The supervisor, the guard and
the workers all write to it. Nothing of it is ever sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.state import chain
from client.state.chain import HEAD, LOG, Verdict, verify
from dusss_core.errors import OPTION, UserError
from dusss_core.files import make_private
from dusss_core.outside import shown

if TYPE_CHECKING:
    from sites.config import SiteConfig


_HEAD = re.compile(r"[0-9a-f]{64}")


class Unrecorded(UserError):
    """The audit log could not be written. What was to be recorded must not happen."""


def record(state_dir: Path, event: str, **fields: Any) -> str:
    """Append one line, and return when it is on the disk.

    Args:
        event: what happened, in a word or two.
        fields: numbers, short texts, lists and mappings of them; long texts are cut, and escaped.

    Returns:
        The line's hash, which binds all lines before it.

    Raises:
        Unrecorded: the line is not in the log (disk full, no permission). The lines before are untouched.
    """
    state_dir = Path(state_dir)
    try:
        make_private(state_dir)
        return chain.append(state_dir, event, fields)
    except UserError as error:
        raise Unrecorded(error.problem, error.remedy) from error
    except OSError as error:
        raise Unrecorded(
            f"{state_dir / LOG}: could not be written: {error.strerror or error}",
            "free disk space or mend the permissions; until then this site answers no message",
        ) from error


def check_head(state_dir: Path, head: str) -> None:
    """Note, once, that a head which left this site is not in its log any more: `verify` finds it damaged from then on.

    Args:
        head: that the coordinator has kept.

    Raises:
        Unrecorded: as `record`.
        UserError: the log cannot be read.
    """
    if not chain.holds(Path(state_dir) / LOG, head):
        problem = (
            "the coordinator has kept a head that no line here has: lines were removed, or the log or all of state_dir "
            "was begun anew or put back from a copy, or the coordinator is mistaken"
        )
        record(state_dir, chain.DAMAGED, problem=problem, head=head)


def print_log(site: SiteConfig, *, as_json: bool = False, last: int | None = None, heads: Iterable[str] = ()) -> int:
    """Verify this site's log and print it, or its last lines.

    Args:
        last: so many lines of its end, 1 or more; None: all.
        heads: that the log must hold, as the coordinator has kept them.

    Returns:
        0 if the chain is whole, 1 if it is broken.

    Raises:
        UserError: there is no log, or it cannot be read; a head that is none, of which nothing follows.
    """
    path = site.state_dir / LOG
    for head in heads:
        if not _HEAD.fullmatch(head):
            raise UserError(
                f"--holds {shown(head, 80)}: no head of a log", "give one of 64 figures from 0 to f", OPTION
            )
    verdict = verify(path)
    if verdict.broken is None and (lost := [head for head in heads if not chain.holds(path, head)]):
        verdict = Verdict(verdict.lines, verdict.last, verdict.lines + 1, f"is missing: no line has the hash {lost[0]}")
    entries = chain.entries(path)[-last if last else None :]
    if as_json:
        print(json.dumps({"log": str(path), "chain": vars(verdict), "entries": entries}))
    else:
        _print_table(path, verdict, entries)
    return 0 if verdict.broken is None else 1


def _print_table(path: Path, verdict: Verdict, entries: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table("line", "time (UTC)", "event", "what", box=None, pad_edge=False, header_style="bold")
    for entry in entries:
        time = entry["time"][:19].replace("T", " ")
        table.add_row(str(entry["seq"]), time, Text(shown(entry["event"])), Text(_told(entry["fields"])))
    console.print(table)
    if verdict.broken is None:
        lines = f"{verdict.lines} line{'s' * (verdict.lines != 1)}"
        console.print(Text(f"{path}: {lines}, the chain is whole; last hash {verdict.last}", style="green"))
    else:
        console.print(Text(f"{path}: line {verdict.broken} {verdict.problem}", style="red"))
        console.print(
            f"  -> find out who changed it; to begin a new log, move {LOG} and {HEAD} away and keep them", markup=False
        )


def _told(fields: Mapping[str, Any]) -> str:
    """The fields in one line; tensors and metrics as their number."""
    parts = []
    for key, value in fields.items():
        if value in (None, "", {}, []):
            continue
        if isinstance(value, dict) and key != "texts":
            parts.append(f"{len(value)} {key}")
        elif isinstance(value, dict):
            parts.append(", ".join(f"{name} {inner}" for name, inner in value.items() if inner != ""))
        elif isinstance(value, str) and len(value) == 64:
            parts.append(f"{key} {value[:12]}…")
        else:
            parts.append(f"{key} {value}")
    return shown("; ".join(parts), 5000)
