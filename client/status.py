"""python -m client status|metrics: what this site does and did, for a person, a program, or Prometheus.

python -m client status --site FILE [--json]             once
python -m client metrics --site FILE --port N            at http://127.0.0.1:N/metrics, until Ctrl-C

All of it is read from the site's own folder; nothing is asked of anybody, and nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from client.site_option import add_site
from dusss_core.outside import shown
from dusss_core.quota import size_of
from feddusss import cli

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from sites.config import SiteConfig

_PORT = 9465


def add_commands(commands: Any) -> None:
    """Add status and metrics."""
    status = cli.add_command(commands, "status", _status, "what this site does and did", "--site site.yaml --json")
    status.add_argument("--json", action="store_true", help="all of it as JSON")
    metrics = cli.add_command(
        commands, "metrics", _metrics, "the same for Prometheus, on loopback, until Ctrl-C", "--site site.yaml"
    )
    metrics.add_argument("--port", type=int, default=_PORT, help=f"port on 127.0.0.1 ({_PORT})")
    for parser in (status, metrics):
        add_site(parser)


def state_of(site: SiteConfig) -> dict[str, Any]:
    """What the site's folder tells, in plain values; figures that are not there are None.

    `answers_bytes` and the times are those of the audit log, which also tells what came and went before a restart.
    """
    from client.consent.book import Book
    from client.state import chain
    from client.state.store import client_runs

    log = site.state_dir / chain.LOG
    entries = chain.entries(log) if log.is_file() else []
    left, wrong = _epsilon_left(site)
    waiting = sorted({one.proposal.study for one in Book(site.state_dir).all() if one.approval is None})
    return {
        "site": site.site,
        "running": client_runs(site.state_dir),
        "last_message": _last(entries, "message"),
        "last_answer": _last(entries, "answer"),
        "answers": sum(entry["event"] == "answer" for entry in entries),
        "answers_bytes": sum(int(entry["fields"].get("bytes", 0)) for entry in entries if entry["event"] == "answer"),
        "declined": sum(entry["event"] == "declined" for entry in entries),
        "last_declined": next((e["fields"] for e in reversed(entries) if e["event"] == "declined"), None),
        "waiting_for_approval": waiting,
        "state_bytes": size_of(site.state_dir),
        "audit_whole": chain.verify(log).broken is None if log.is_file() else None,
        "epsilon_left": left,
        "ledger": wrong,
    }


def _last(entries: list[dict[str, Any]], event: str) -> str | None:
    return next((entry["time"] for entry in reversed(entries) if entry["event"] == event), None)


def _epsilon_left(site: SiteConfig) -> tuple[float | None, str | None]:
    """What is left of the budget, and what is wrong with the ledger. One that cannot be trusted pays for nothing."""
    from client.privacy.command import summary
    from client.privacy.ledger import Ledger, LedgerError

    if site.privacy.epsilon is None:
        return None, None
    try:
        told = summary(Ledger(site.state_dir, site.privacy))
    except LedgerError as error:
        return 0.0, error.problem
    return (0.0 if told["void"] else told["left"]), None


def _status(arguments: argparse.Namespace) -> int:
    from sites.config import load_site

    state = state_of(load_site(arguments.site, arguments.overrides))
    if arguments.json:
        print(json.dumps(state))
        return cli.OK
    lines = [
        f"site {state['site']}: its client {'runs' if state['running'] else 'does not run'}",
        f"last message   {_shown(state['last_message'])}",
        f"last answer    {_shown(state['last_answer'])}; "
        f"{state['answers']} in all, {state['answers_bytes'] / 1e6:.1f} MB",
        f"declined       {state['declined']}" + (f", last: {_reason(state)}" if state["last_declined"] else ""),
        f"disk           {state['state_bytes'] / 1e6:.1f} MB of private state",
    ]
    if state["audit_whole"] is False:
        lines.append("audit log      its chain is BROKEN: python -m client audit says where")
    if state["epsilon_left"] is not None:
        lines.append(f"budget         epsilon {state['epsilon_left']:.3g} is left")
    if state["ledger"] is not None:
        lines.append(f"ledger         {state['ledger']}: python -m client privacy says what to do")
    if state["waiting_for_approval"]:
        lines.append(f"wait for a yes {', '.join(state['waiting_for_approval'])} (python -m client show STUDY)")
    print("\n".join(lines))
    return cli.OK


def _metrics(arguments: argparse.Namespace) -> int:
    from feddusss.monitoring import serve
    from sites.config import load_site

    serve(Collector(load_site(arguments.site, arguments.overrides)), arguments.port)
    return cli.OK


class Collector:
    """The site's state as Prometheus metrics, read anew at each scrape."""

    def __init__(self, site: SiteConfig):
        self.site = site

    def collect(self) -> Iterator[Metric]:
        """The metrics; of what is not known there is none."""
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge

        state = state_of(self.site)
        ages = {name: _age(state[name]) for name in ("last_message", "last_answer")}
        gauges = {
            "feddusss_client_running": ("1 while the site's client runs", float(state["running"])),
            "feddusss_seconds_since_last_message": ("Since a message came", ages["last_message"]),
            "feddusss_seconds_since_last_answer": ("Since an answer was let out", ages["last_answer"]),
            "feddusss_state_bytes": ("Of the site's private folder", state["state_bytes"]),
            "feddusss_audit_whole": ("1 if the audit log's chain is whole", state["audit_whole"]),
            "feddusss_studies_waiting_for_approval": ("Studies", len(state["waiting_for_approval"])),
            "feddusss_epsilon_left": ("Of the site's privacy budget", state["epsilon_left"]),
        }
        for name, (about, value) in gauges.items():
            if value is not None:
                yield Gauge(name, about, value=float(value))
        yield Counter("feddusss_answers", "Answers that were let out", value=state["answers"])
        yield Counter("feddusss_answer_bytes", "Their models", value=state["answers_bytes"])
        yield Counter("feddusss_declined", "Messages that were declined", value=state["declined"])


def _age(moment: str | None) -> float | None:
    return None if moment is None else max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


def _shown(moment: str | None) -> str:
    return "none yet" if moment is None else f"{moment[:19].replace('T', ' ')} UTC"


def _reason(state: dict[str, Any]) -> str:
    return shown(state["last_declined"].get("reason", ""), 200)
