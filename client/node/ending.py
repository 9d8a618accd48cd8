"""Why a SuperNode ended, in words for the person at the hospital, and how soon to start it again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

UNWRITABLE = "what the local API needs could not be written"
"""What a SuperNode says that ends for that."""


@dataclass(frozen=True)
class Ending:
    """Why a process ended."""

    name: str
    """Two endings of one name in a row are told once."""
    text: str
    shortest_s: float
    longest_s: float
    """Wait so long before the next start, doubling from the shortest to the longest."""


@dataclass(frozen=True)
class Situation:
    """What the supervisor knows when a SuperNode ends."""

    lines: Iterable[str]
    """The last lines that it wrote."""
    was_connected: bool
    """The coordinator had let it in since it was started."""
    may_be_online: bool
    """It was connected with this very key a moment ago, ended without a goodbye, and was not refused since."""
    public_key: str
    """Where the site's public key lies."""


def why(situation: Situation) -> Ending:
    """Why the SuperNode ended. Flower tells it in its exit message alone, by a number or a few words."""
    text = "\n".join(situation.lines)
    if told := re.search(rf"{UNWRITABLE}: (.+)", text):
        return Ending("disk", f"state_dir cannot be written, trying again until it can: {told[1][:300]}", 5, 60)
    code = match[1] if (match := re.search(r"\[code: (\d+)\]", text)) else None
    if code == "2004":  # for an unknown key and for a node that counts as connected alike
        return _STILL_ONLINE if situation.may_be_online else _unknown_key(situation.public_key)
    if "terminated gracefully" in text:  # nobody asked it to: it ends so when a signature is refused (HTTP 401)
        return _revoked(situation.public_key) if situation.was_connected else _CLOCK
    if re.search(r"\[SSL: UNEXPECTED_EOF", text) and "Failed to initialize the connection" in text:
        return _CUT_SHORT
    if re.search(r"certificate|SSL|TLS", text) and "Failed to initialize the connection" in text:
        return Ending(
            "tls",
            "the coordinator's certificate was not accepted: " + _certificate_problem(text),
            10,
            120,
        )
    if "Runtime version compatibility" in text or "Exit Code: 606" in text:
        return Ending("version", "the coordinator runs another release of Flower; install the pinned one", 60, 300)
    told = re.search(r"Failed to initialize the connection to the SuperLink\.\n(.+)", text)
    reason = told[1].strip()[:300] if told else "the log says more"
    return Ending("other", f"the connection process ended: {reason}", 1, 60)


_STILL_ONLINE = Ending(
    "still online",
    "the coordinator still counts this site as connected, as it does for up to a minute after a crash; trying again "
    "until it does not",
    8,
    8,
)
_CUT_SHORT = Ending(
    "cut short",
    "a connection to superlink.address is taken and closed at once: the line beyond a proxy is away, or something "
    "else than the coordinator is at that port. Trying again until it answers",
    1,
    30,
)
_CLOCK = Ending(
    "clock",
    "the coordinator refused this site's signature: set this machine's clock (at most 5 s fast, 5 min slow)",
    15,
    120,
)


def _unknown_key(public_key: str) -> Ending:
    return Ending(
        "key",
        f"the coordinator does not know this site's key: send it {public_key}, if that was not done. Or the key was "
        "revoked; or the coordinator has lost its list of keys, and takes them up again by itself; or another client "
        "with this key is connected. Trying again now and then",
        15,
        300,
    )


def _revoked(public_key: str) -> Ending:
    return Ending(
        "revoked",
        "the coordinator no longer accepts this site's key: it was revoked, or the coordinator has lost its list of "
        "keys, and takes them up again by itself, or this machine's clock was changed. Trying again now and then; ask "
        f"the coordinator if it lasts. This site's public key is {public_key}",
        15,
        300,
    )


def _certificate_problem(text: str) -> str:
    lower = text.lower()
    if "expired" in lower:
        return "it has expired, or this machine's clock is wrong; the coordinator must renew it"
    if "not yet valid" in lower:
        return "it is not valid yet: this machine's clock, or the coordinator's, is wrong; set the one that is"
    if "hostname mismatch" in lower or "ip address mismatch" in lower:
        return "it is not made for the host in superlink.address; ask the coordinator for the right address"
    if "self-signed" in lower or "unable to get local issuer" in lower or "verify failed" in lower:
        return "it is not signed by superlink.root_certificates; use the CA certificate of this coordinator's kit"
    return "is this the coordinator's port, and does it speak TLS? The log says more"
