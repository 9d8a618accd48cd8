"""What a study proposes to a site, as one record with a digest, and in what two of them differ.

A yes is to a proposal. What asks later is covered by it where nothing that matters has changed: the settings that a
site trains by, what becomes of its updates, and who the others are. Free to change are timeouts, fewer rounds than were
approved, more sites that a round needs, the coordinator's release (a site takes the same one only by its own
administrator's hand), and partners who leave, as long as those who stay are as many as a round needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dusss_core.config import TrainingConfig
from dusss_core.phases import Phase
from feddusss.configfile import flat
from feddusss.terms import Terms

_ABSENT = "(not set)"
_ROUNDS = tuple(f"{phase}.rounds" for phase in Phase)
_LEAST = "federation.min_sites"


class NotOne(ValueError):
    """A text is no proposal."""


@dataclass(frozen=True)
class Difference:
    """One setting in which two proposals differ."""

    key: str
    """a.b.c, or partners.NAME."""
    before: Any
    after: Any
    free: bool
    """Whether an approval of the one covers the other in this."""


@dataclass(frozen=True)
class Proposal:
    """The whole of what a study asks for."""

    training: TrainingConfig
    terms: Terms

    @property
    def study(self) -> str:
        return self.training.study

    def text(self) -> str:
        """As it is kept: canonical JSON, so that equal proposals have equal digests."""
        body = {"training": self.training.model_dump(mode="json"), "terms": self.terms.model_dump(mode="json")}
        return json.dumps(body, sort_keys=True, indent=1, allow_nan=False)

    @property
    def digest(self) -> str:
        """SHA-256 of `text`, in hex."""
        return digest_of(self.text())

    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted key: the training's as they are in a study file, `federation.*`, `release`."""
        return _settings(self.training.model_dump(mode="json"), self.terms)


def digest_of(text: str) -> str:
    """SHA-256 of a proposal's text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_proposal(text: str) -> tuple[Proposal, dict[str, Any]]:
    """The proposal of a text that `Proposal.text` made, perhaps in an older release; and its settings as they were.

    Raises:
        NotOne: it is none, or this release cannot read it.
    """
    try:
        body = json.loads(text)
        terms = Terms.model_validate(body["terms"])
        return Proposal(TrainingConfig.model_validate(body["training"]), terms), _settings(body["training"], terms)
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        raise NotOne(str(error).splitlines()[0]) from None


def differences(before: Proposal, after: Proposal, settings_before: Mapping[str, Any]) -> list[Difference]:
    """In what `after` differs from `before`, what needs a new yes first.

    Args:
        settings_before: of `before`, as they were written: a setting that its release did not have counts as at today's
            default, which computes what that release did.
    """
    defaults = Proposal(TrainingConfig(), after.terms).settings()
    asked = after.settings()
    found = []
    for key in sorted(asked.keys() | {key for key in settings_before if key.startswith("federation.")}):
        new = asked.get(key, _ABSENT)
        fallback = _ABSENT if key.startswith("federation.") else defaults.get(key, _ABSENT)
        old = settings_before.get(key, fallback)
        if old != new:
            found.append(Difference(key, old, new, _is_free(key, old, new)))
    found += _changed_partners(before.terms, after.terms)
    if before.terms.release != after.terms.release:
        found.append(Difference("release", before.terms.release, after.terms.release, True))
    return sorted(found, key=lambda difference: difference.free)


def _is_free(key: str, old: Any, new: Any) -> bool:
    if type(old) is not int or type(new) is not int:
        return False
    return new <= old if key in _ROUNDS else new >= old if key == _LEAST else False


def _changed_partners(before: Terms, after: Terms) -> Iterator[Difference]:
    needed = max(before.min_sites, after.min_sites)
    enough = len(after.partners) >= needed and bool(after.partners)
    for name in sorted(before.partners.keys() | after.partners.keys()):
        old, new = before.partners.get(name), after.partners.get(name)
        if old != new:
            yield Difference(f"partners.{name}", old or _ABSENT, new or "(left)", new is None and enough)


def _settings(training: Mapping[str, Any], terms: Terms) -> dict[str, Any]:
    return {**flat(training), **{f"federation.{key}": value for key, value in terms.federation.items()}}
