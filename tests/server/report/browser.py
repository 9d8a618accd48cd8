"""A real headless Chromium that opens a page from the disk: what it says and asks for, how wide and long it is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), "")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions",
    "--disable-component-update", "--disable-background-networking", "--disable-sync", "--no-pdf-header-footer",
    "--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
_SECONDS = 120
_OF_THE_PAGE = re.compile(r'"traffic_annotation":101845102,"url":"([^"]*)"')
"""A request that a page makes, as Chromium numbers the reasons; the browser's own look-ups have other numbers."""


def run(page: Path | str, scratch: Path, *flags: str) -> tuple[str, str, list[str]]:
    """Open a page of the disk, or of an address of this machine.

    Args:
        scratch: an empty folder for the browser's own files.

    Returns:
        What it printed, its log with the console's lines, and the addresses that it asked for.
    """
    asked = scratch / "net.json"
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={scratch / 'profile'}", "--enable-logging=stderr", "--v=0"]
    address = page.resolve().as_uri() if isinstance(page, Path) else page
    if not isinstance(page, Path):
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    command += [f"--log-net-log={asked}", *flags, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    return done.stdout, done.stderr, _OF_THE_PAGE.findall(asked.read_text(errors="replace"))


def console(log: str) -> list[str]:
    """Lines that a page wrote to the browser's console: errors, refused requests, broken rules of its policy."""
    return [line for line in log.splitlines() if "CONSOLE" in line]


def size(page: Path, scratch: Path, width: int) -> tuple[int, int]:
    """How wide and how long a page is, in pixels, in a window of `width`: wider than that, and it must be scrolled."""
    frame = scratch / "frame.html"
    told = "JSON.stringify([d.scrollWidth, d.scrollHeight])"
    frame.write_text(
        f'<body><iframe id=f src="{page.resolve().as_uri()}" style="width:{width}px;height:800px;border:0" '
        f"onload=\"const d = document.getElementById('f').contentDocument.documentElement; "
        f'document.body.textContent = {told}"></iframe></body>'
    )
    text, *_ = run(frame, scratch, "--dump-dom")
    return tuple(json.loads(re.search(r"\[\d+,\d+\]", text).group()))


def pages(page: Path, scratch: Path) -> int:
    """How many pages it takes to print it."""
    path = scratch / "page.pdf"
    run(page, scratch, f"--print-to-pdf={path}")
    return len(re.findall(rb"/Type\s*/Page[^s]", path.read_bytes()))


def screenshot(page: Path | str, scratch: Path, *flags: str) -> bytes:
    """A picture of the first 1200 x 900 pixels, as PNG."""
    path = scratch / "page.png"
    run(page, scratch, "--window-size=1200,900", f"--screenshot={path}", *flags)
    return path.read_bytes()
