"""Which software this is: its version, and what its code is.

Two machines may both say 0.4.0 and have other code, where one was taken from a repository in between. So the
coordinator says both with each of its answers, and a hospital's preflight compares them with its own.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

from feddusss import __version__

HEADER = "feddusss-release"
"""Of the SuperLink's answers."""
_CODE = ("client", "dusss_core", "feddusss", "sites")
"""What runs at a hospital."""
_FORM = re.compile(r"^[A-Za-z0-9.+-]{1,40} [0-9a-f]{16}$")


@cache
def release() -> str:
    """Version and digest of the code, as `0.4.0 1b2c3d4e5f607182`."""
    return f"{__version__} {code_digest(Path(__file__).parents[1])}"


def code_digest(root: Path) -> str:
    """16 hexadecimal digits that follow from the Python files of a hospital's packages, by name and content.

    Args:
        root: the folder that holds the packages.
    """
    digest = hashlib.sha256()
    for package in _CODE:
        for path in sorted((root / package).rglob("*.py"), key=lambda path: path.as_posix()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


def told(header: str | None) -> tuple[str, str] | None:
    """Version and digest that another machine has told; None: it has told none."""
    if header is None or not _FORM.match(header):
        return None
    version, code = header.split()
    return version, code


def tell_release() -> None:
    """Let the uvicorn servers of this process say with each answer which release this is."""
    import uvicorn

    begin = uvicorn.Config.__init__

    def begin_with_release(self, *arguments, headers=None, **others) -> None:
        begin(self, *arguments, headers=[*(headers or []), (HEADER, release())], **others)

    uvicorn.Config.__init__ = begin_with_release
