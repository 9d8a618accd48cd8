"""python -m client --site FILE --check: what would stand in this site's way, each with what to do. Changes nothing.

The checks run side by side, each in a time of its own, and none of them writes: not the caches, not the audit log, not
the coordinator's list of nodes.

May enter: the site's own file.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dusss_core.errors import UserError
from feddusss import cli
from sites.check import Finding
from sites.config import SiteConfig, load_site

Check = Callable[[SiteConfig], Iterable[Finding]]

LONGEST_S = 15.0
"""A check that takes longer is given up: a disk or a name server that does not answer must not hold the others."""
_LONGEST_IMPORT_S = 60.0
"""For those that load torch or Flower, from a disk that may be slow."""
_LOADING_FLOWER = threading.Lock()
"""Parts of Flower import each other in a circle: of two threads at once, one finds a part that is half loaded."""


def check(site_file: Path, overrides: Iterable[str] = ()) -> int:
    """Print one line for each thing that was looked at.

    Returns:
        0 if the site can take part, 2 if something must be mended first.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # no text encoder is fetched by a check
    findings = list(_show(find(site_file, overrides)))
    errors = sum(finding.level == "error" for finding in findings)
    print("ready" if not errors else f"{errors} to mend before this site can take part")
    return cli.USER_MUST_MEND if errors else cli.OK


def find(site_file: Path, overrides: Iterable[str] = ()) -> Iterator[Finding]:
    """What there is to say about a site, in a fixed order."""
    from client.preflight import machine, network, privacy, release

    try:
        site = load_site(site_file, overrides)
    except UserError as error:
        yield Finding("error", "config", error.problem, error.remedy)
        return
    yield Finding("ok", "config", f"site {site.site}, {Path(site_file).resolve()}")
    loading_torch = {"text encoder": machine.text_encoders, "device": machine.device, "privacy": privacy.budget}
    yield from _side_by_side(
        [
            _Task("data", machine.data),
            # one thread loads torch, and not two at once
            _Task("text encoder, device, privacy", _in_turn(loading_torch), _LONGEST_IMPORT_S),
            _Task("memory", machine.memory),
            _Task("disk", machine.disk),
            _Task("key", machine.key),
            _Task("peers", machine.peers),
            _Task("certificates", network.root_certificates),
            _Task("coordinator", _with_flower(network.coordinator), _LONGEST_IMPORT_S),
            _Task("versions", release.versions),
            _Task("app", _with_flower(release.app), _LONGEST_IMPORT_S),
            _Task("client", machine.running_client),
            _Task("approvals", machine.approvals),
            _Task("audit log", machine.audit_log),
        ],
        site,
    )


@dataclass(frozen=True)
class _Task:
    subject: str
    check: Check
    longest_s: float = LONGEST_S


def _in_turn(checks: Mapping[str, Check]) -> Check:
    return lambda site: [finding for subject, each in checks.items() for finding in _run(subject, each, site)]


def _with_flower(check: Check) -> Check:
    def loaded_first(site: SiteConfig) -> Iterable[Finding]:
        with _LOADING_FLOWER, contextlib.suppress(ImportError):  # `versions` tells that it is not there
            importlib.import_module("flwr.cli.build")
            importlib.import_module("flwr.common")
        return check(site)

    return loaded_first


def _side_by_side(tasks: list[_Task], site: SiteConfig) -> Iterator[Finding]:
    found: dict[str, list[Finding]] = {}

    def work(task: _Task) -> None:
        found[task.subject] = _run(task.subject, task.check, site)

    # daemons: one that hangs does not keep the process
    threads = {task: threading.Thread(target=work, args=(task,), daemon=True) for task in tasks}
    for thread in threads.values():
        thread.start()
    started = time.monotonic()
    for task, thread in threads.items():
        thread.join(max(0.0, started + task.longest_s - time.monotonic()))
        if task.subject in found:
            yield from found[task.subject]
        else:
            yield Finding(
                "error",
                task.subject,
                f"could not be told within {task.longest_s:.0f} s",
                "look whether the disk and the network answer, then check again",
            )


def _run(subject: str, check: Check, site: SiteConfig) -> list[Finding]:
    try:
        return list(check(site))
    except UserError as error:
        return [Finding("error", subject, error.problem, error.remedy)]
    except Exception as error:
        return [Finding("error", subject, f"could not be checked: {type(error).__name__}: {error}", "report this")]


def _show(findings: Iterator[Finding]) -> Iterator[Finding]:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    styles = {"ok": "green", "warning": "yellow", "error": "red"}
    for finding in findings:
        line = Text(f"{finding.level:<8}", style=styles[finding.level])
        console.print(line.append(f"{finding.subject:<14}{finding.message}", style="default"))
        if finding.remedy:
            console.print(Text(f"{'':8}{'':14}-> {finding.remedy}"))
        yield finding
