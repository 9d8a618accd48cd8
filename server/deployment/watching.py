"""What a monitoring system is told of the coordinator: one state, as JSON and as Prometheus metrics."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dusss_core.errors import UserError
from server.runs.eventlog import FILE, progress_of
from server.runs.lines import ALL_SITES
from server.runs.runfiles import read_run

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from server.deployment.control import Control, FlowerRun, Node
    from server.deployment.registry import Registry

WITHOUT_NODE = {"invited": "no key yet", "pending": "not handed over yet"}
"""Status of a registered site that the SuperLink does not know -> what a person is told."""


def state_of_run(run: FlowerRun) -> dict[str, Any]:
    """Where a run is, in plain values. `quiet_s`: seconds since it told anything; None: nothing yet."""
    progress = progress_of(run.out, run.id)
    up, down = _bytes(run.out)
    return {
        "run": run.id,
        "study": progress.study or study_in(run.out),
        "state": run.outcome if run.finished and run.outcome else run.status,
        "began": run.began,
        "folder": str(run.out),
        "phase": progress.phase,
        "round": progress.round,
        "rounds": progress.rounds,
        "doing": "" if run.finished else progress.doing,
        "seconds_left": None if run.finished else progress.seconds_left(time.time()),
        "sites": dict(sorted(progress.sites.items())),
        "outside": {} if run.finished else dict(sorted(progress.outside.items())),
        "figures": {name: value for name, value in progress.figures.items() if value is not None},
        "last_message": progress.last_message,
        "said": progress.said,
        "quiet_s": _quiet_s(run.out),
        "bytes_up": up,
        "bytes_down": down,
        "code": progress.code,
        "text": progress.text or (run.details if run.finished else ""),
    }


def state_of_sites(nodes: list[Node], registry: Registry) -> list[dict[str, Any]]:
    """Every hospital with a kit, and every node that the SuperLink knows."""
    names = registry.names_by_node()
    told = [
        {
            "site": node.name or names.get(node.id, "?"),
            "state": node.status,
            "seen": node.seen,
            "node": node.id,
            "key": node.fingerprint,
        }
        for node in nodes
    ]
    there = {site["site"] for site in told}
    for site in registry.sites:
        if site.name not in there:
            key = site.key.fingerprint if site.key else ""
            state = WITHOUT_NODE.get(site.status, site.status)
            told.append({"site": site.name, "state": state, "seen": "", "node": None, "key": key})
    return told


def study_in(out: Path) -> str:
    """The study whose settings lie in a run's folder, for a run that ended before it told."""
    from feddusss import configfile

    try:
        return str(configfile.read_yaml(out / "config.yaml").get("study", "?"))
    except UserError:
        return "?"


class Collector:
    """Prometheus metrics of the SuperLink's runs and sites, read anew at each scrape.

    Args:
        coordinator: the coordinator's folder.
    """

    def __init__(self, coordinator: Path):
        self.coordinator = coordinator

    def collect(self) -> Iterator[Metric]:
        """The metrics; where the SuperLink does not answer, `feddusss_superlink_up` is 0 and the others are missing."""
        from prometheus_client.core import GaugeMetricFamily as Gauge

        from server.deployment.certificates import valid_until
        from server.deployment.control import ControlFailed, SuperLinkAway, connected
        from server.deployment.folder import CoordinatorFolder
        from server.deployment.registry import load_registry

        up = Gauge("feddusss_superlink_up", "1 if the SuperLink answers")
        free = Gauge("feddusss_disk_free_bytes", "Free on the disk of the coordinator's folder")
        free.add_metric([], shutil.disk_usage(self.coordinator).free)
        yield free
        with suppress(UserError):  # no certificate that can be read
            until = valid_until(CoordinatorFolder(self.coordinator).server.certificate)
            left = Gauge("feddusss_certificate_seconds_left", "Until server.crt expires")
            left.add_metric([], (until - datetime.now(UTC)).total_seconds())
            yield left
        try:
            with connected(self.coordinator) as control:
                runs, nodes = newest_runs(control), control.nodes()
        except (UserError, ControlFailed, SuperLinkAway):
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        with suppress(UserError):  # no register that can be read: no figures of hospitals, and all others
            yield from self._of_sites(state_of_sites(nodes, load_registry(CoordinatorFolder(self.coordinator))))
        yield from self._of_runs([state_of_run(run) for run in runs])

    def _of_sites(self, sites: list[dict[str, Any]]) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily as Gauge

        connected = Gauge("feddusss_site_connected", "1 if the hospital's client is connected", labels=["site"])
        for site in sites:
            if site["node"] is not None:  # who was revoked, or has sent no key, is not away
                connected.add_metric([site["site"]], float(site["state"] == "online"))
        yield connected

    def _of_runs(self, runs: list[dict[str, Any]]) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge

        labels = ["study", "run"]
        gauges = {
            "round": Gauge("feddusss_round", "Round that is being trained, or was last", labels=[*labels, "phase"]),
            "rounds": Gauge("feddusss_rounds", "Rounds of the phase", labels=[*labels, "phase"]),
            "running": Gauge("feddusss_run_running", "1 while the run works", labels=labels),
            "failed": Gauge("feddusss_run_failed", "1 if its last submission failed", labels=labels),
            "sites": Gauge("feddusss_round_sites", "Hospitals in the round that were not left out", labels=labels),
            "quiet": Gauge("feddusss_seconds_since_last_event", "Since the run last told anything", labels=labels),
            "bytes": Counter("feddusss_model_bytes", "Of models, over all rounds", labels=[*labels, "direction"]),
        }
        for run in runs:
            named = [run["study"], str(run["run"])]
            if run["phase"]:
                gauges["round"].add_metric([*named, run["phase"]], run["round"])
                gauges["rounds"].add_metric([*named, run["phase"]], run["rounds"])
            gauges["running"].add_metric(named, float(run["state"] == "running"))
            gauges["failed"].add_metric(named, float(run["state"] == "failed"))
            taking_part = sum(not doing.startswith("left out") for doing in run["sites"].values())
            gauges["sites"].add_metric(named, taking_part)
            if run["quiet_s"] is not None:
                gauges["quiet"].add_metric(named, run["quiet_s"])
            gauges["bytes"].add_metric([*named, "up"], run["bytes_up"])
            gauges["bytes"].add_metric([*named, "down"], run["bytes_down"])
        yield from gauges.values()


def newest_runs(control: Control) -> list[FlowerRun]:
    """The last submission of each folder."""
    return list({run.out: run for run in control.runs()}.values())


def _quiet_s(out: Path) -> float | None:
    try:
        return max(0.0, time.time() - (out / FILE).stat().st_mtime)
    except OSError:
        return None


def _bytes(out: Path) -> tuple[int, int]:
    """Bytes of models that came up and went down in the rounds that are saved."""
    try:
        rounds = [line for line in read_run(out).rounds if line["site"] == ALL_SITES]
    except UserError:
        return 0, 0  # it has written nothing yet
    up, down = (sum(int(line.get(name) or 0) for line in rounds) for name in ("bytes_up", "bytes_down"))
    return up, down


def moment(text: str) -> str:
    """A moment as a person reads it, in local time."""
    if not text:
        return "never"
    told = datetime.fromisoformat(text)
    told = told if told.tzinfo else told.replace(tzinfo=UTC)
    return told.astimezone().strftime("%Y-%m-%d %H:%M:%S")
