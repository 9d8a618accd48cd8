"""Whether this site has the release that the coordinator has."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from feddusss import __version__, flower
from sites.check import Finding
from sites.config import SiteConfig


def versions(site: SiteConfig) -> Iterator[Finding]:
    """This package, Flower, torch and Python."""
    found = {name: _version(name) for name in ("flwr", "torch")}
    told = ", ".join(
        [f"feddusss {__version__}", *(f"{k} {v}" for k, v in found.items()), f"Python {platform.python_version()}"]
    )
    missing = [name for name, text in found.items() if text == "missing"]
    if missing:
        yield Finding("error", "versions", told, f"pip install {' '.join(missing)}, or install this release again")
    elif not flower.RANGE[0] <= tuple(map(int, found["flwr"].split(".")[:2])) <= flower.RANGE[1]:
        yield Finding("error", "versions", told, f"pip install 'flwr{flower.requirement()}', as the coordinator has it")
    else:
        yield Finding("ok", "versions", told)


def app(site: SiteConfig) -> Iterator[Finding]:
    """The one app bundle that this release accepts, for comparison with the coordinator's."""
    from feddusss.bundle import release_bundle

    yield Finding("ok", "app", f"sha256 {release_bundle()[1]} (the coordinator's must be the same)")


def compared(header: str | None) -> Finding:
    """This site's software beside what the coordinator says that it has.

    Args:
        header: what its answer said; None: nothing, as releases before 0.4.0 do.
    """
    from feddusss.release import release, told

    theirs, ours = told(header), told(release())
    if theirs is None:
        return Finding(
            "warning",
            "release",
            f"the coordinator does not say which release it has, so it is an older one than this site's {ours[0]}",
            "ask the coordinator, and install the same",
        )
    if theirs[0] != ours[0]:
        return Finding(
            "error",
            "release",
            f"the coordinator has feddusss {theirs[0]}, this site {ours[0]}: what it sends is refused here",
            f"install {theirs[0]}, or have the coordinator install {ours[0]}",
        )
    if theirs[1] != ours[1]:
        return Finding(
            "warning",
            "release",
            f"the coordinator has other code under the same number {ours[0]} ({theirs[1]}; here {ours[1]})",
            "install the very archive or commit that the coordinator has",
        )
    return Finding("ok", "release", f"the coordinator's is the same, {ours[0]} ({ours[1]})")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
