"""What a site does with a message: in by the door, to work, and out by the door.

An answer holds the shared tensors, single figures, and nothing else. What goes wrong here is told in full in the
site's own log; to the coordinator goes a sentence that was written for it (`Declined`), or the kind of error alone,
since an error's text may name a patient's file.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import RecordDict

from client.declined import Declined
from client.door import machine
from client.door.audit import Unrecorded
from client.door.entrance import admitted
from client.door.exit import UNRECORDED, decline, let_out
from client.door.request import Judged
from client.privacy import paid
from client.privacy.ledger import LedgerError
from client.secure.part import Part
from client.state.store import write_log
from client.work import evaluation, observe, query, training, workbench
from dusss_core.errors import NotFinite, UserError
from dusss_core.quota import NoRoom
from sites.config import SiteConfig, load_site

UNUSABLE_FILE = "this site's own file has a mistake; its client tells which"


def answer(kind: str, content: RecordDict, site_file: Path) -> RecordDict:
    """Work on a message for the site that `site_file` describes.

    Args:
        kind: query, train or evaluate.

    Returns:
        The content of the answer; {"config": {"declined": reason}} if the site did not do it.
    """
    site, full = None, False
    try:
        site = load_site(site_file)
        with admitted(site, site_file, kind, content) as request:
            reply, about = _worked(request)
            return let_out(request, reply, about)
    except Declined as declined:
        why = declined.with_traceback(None)
        why.__cause__ = why.__context__ = None  # whose frames hold what filled the memory
        full = why.exhausted
    except Unrecorded as error:
        why = Declined(UNRECORDED)
        observe.failed(error)
    except Exception as error:
        why, full = _told(error, site), machine.exhausted(error) is not None
        observe.failed(error)
        if site is not None:
            write_log(site.state_dir, traceback.format_exc())
    if full:
        workbench.forget()
        machine.give_back()
    return decline(site, kind, why)


class _Way(NamedTuple):
    """How a site makes its answers, by kind of message."""

    query: Callable
    train: Callable
    evaluate: Callable


_PLAIN = _Way(query.plain, training.plain, evaluation.plain)
_PAID = _Way(paid.query, paid.train, paid.evaluate)


def _worked(request: Judged) -> tuple[RecordDict, Mapping[str, Any]]:
    """The answer, plain or paid for, and as a part of a sum where one is asked for: that is chosen here alone.

    Returns:
        The answer, and what the audit log should say of it beyond what it holds.
    """
    way = _PAID if _is_private(request.site) else _PLAIN
    bench = workbench.workbench(request)
    if request.step is not None:
        part = Part(request)
        reply = part.answer(
            check=lambda: training.check_can_train(request, bench),
            train=lambda: way.train(training.Round(request, bench)),
        )
        return reply, part.about()
    if request.kind == "query":
        return query.introduction(request, *way.query(request, bench)), {}
    if request.kind == "evaluate":
        return way.evaluate(request, bench, evaluation.figures(request, bench)), {}
    return way.train(training.Round(request, bench)), {}


def _is_private(site: SiteConfig) -> bool:
    """Whether the site trains with differential privacy, and not at all without."""
    return site.privacy.epsilon is not None


def _told(error: Exception, site: SiteConfig | None) -> Declined:
    """What the coordinator hears of an error."""
    lost = machine.loses_device(error)
    if site is None and isinstance(error, UserError):
        return Declined(UNUSABLE_FILE)
    if isinstance(error, LedgerError):
        return Declined(paid.LEDGER_IS_WRONG)
    if isinstance(error, NoRoom) and site is not None:
        most = f"{site.limits.max_disk_gb:g} GB, limits.max_disk_gb"
        return Declined(f"this site's private state would take more disk than it allows ({most})")
    if site is not None and _is_private(site):
        return Declined(paid.FAILED)
    if machine.exhausted(error) is not None:
        told = str(error) if isinstance(error, machine.OutOfMemory) else "this site has too little memory"
        return Declined(told, exhausted=True)
    if lost:
        return Declined("this site's GPU failed, and the round is lost; the state before is kept", lost=True)
    diverged = isinstance(error, NotFinite)
    what = "the loss is not finite" if diverged else type(error).__name__
    return Declined(f"{what}; the site's own log says more", diverged=diverged)
