"""What this site allows. Read from the site's own file only; no message can widen it."""

from __future__ import annotations

import resource
import sys
from datetime import datetime, time

from client.request import Declined, Request
from sites.config import SiteConfig


def check_training(site: SiteConfig, request: Request) -> None:
    """Refuse a training request that goes beyond the site's limits.

    Raises:
        Declined: with the limit and what was asked.
    """
    limits, phase = site.limits, request.phase
    if phase not in limits.phases:
        raise Declined(f"this site does not train in phase '{phase}' (limits.phases)", abstains=True)
    epochs = getattr(request.training, phase).epochs
    if epochs > limits.max_epochs_per_round:
        raise Declined(
            f"{epochs} epochs per round were asked for; this site allows {limits.max_epochs_per_round} "
            "(limits.max_epochs_per_round)"
        )
    encoder = request.training.vlm.text.encoder
    if phase == "pretrain" and encoder not in limits.text_encoders:
        raise Declined("the study names a text encoder that this site does not allow (limits.text_encoders)")
    if site.privacy.epsilon is not None:
        raise Declined("this site asks for differential privacy, which this release cannot train with", abstains=True)
    if limits.hours is not None and not _within(limits.hours, datetime.now().time()):
        raise Declined(f"this site trains only between {limits.hours} (limits.hours)")
    if limits.max_memory_gb is not None and _peak_memory_gb() > limits.max_memory_gb:
        raise Declined(
            f"training took {_peak_memory_gb():.1f} GB; this site allows {limits.max_memory_gb:g} "
            "(limits.max_memory_gb)"
        )


def check_steps(site: SiteConfig, steps: int) -> None:
    """Refuse a round of more optimizer steps than the site allows.

    Raises:
        Declined: with the limit; the number of steps is left out, since it tells the number of pictures.
    """
    most = site.limits.max_steps_per_round
    if most is not None and steps > most:
        raise Declined(f"more steps per round than this site allows ({most}, limits.max_steps_per_round)")


def _within(hours: str, now: time) -> bool:
    start, end = (time.fromisoformat(part) for part in hours.split("-"))
    return start <= now < end if start <= end else now >= start or now < end


def _peak_memory_gb() -> float:
    """Largest memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)
