"""What a site is told of a study beside its training settings: release, partners, and how models become one.

It goes with every message to a deployed site. A site that lets a person approve each study (`limits.approval`) holds a
message against what was approved there; the others do not read it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from dusss_core.config import Strict

MOST_CHARACTERS = 200_000
"""Of its JSON."""
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
_Key = Annotated[str, StringConstraints(pattern=r"^[a-z][A-Za-z0-9_.-]{0,127}$")]
_Line = Annotated[str, StringConstraints(pattern=r"^[ -~]{0,128}$")]
"""Printable, since a person reads it in a terminal."""


class Terms(Strict):
    """Who takes part in a study, and what the coordinator does with what they send."""

    release: _Line
    """Of the coordinator's software."""
    partners: dict[_Name, _Line] = Field(default_factory=dict, max_length=2000)
    """Each hospital's name, and the fingerprint of its key (SHA256:...; empty: it has sent none yet). Empty: the
    coordinator does not say."""
    federation: dict[_Key, bool | int | float | _Line | None] = Field(default_factory=dict, max_length=4000)
    """Settings of `federation` that say what becomes of an update, by their dotted keys."""

    @property
    def min_sites(self) -> int:
        """Fewest sites of a round."""
        value = self.federation.get("min_sites", 1)
        return value if type(value) is int else 1
