"""A real browser without a window, for pages: what it says on its console, and what it draws."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(_BROWSER is None, reason="no Chromium on this machine")
_DARK = "--blink-settings=preferredColorScheme=0"


def console_of(page: Path, *, dark: bool = False, width: int = 1200, shot: Path | None = None) -> list[str]:
    """What the page makes the console say: errors of scripts and styles, requests that fail or are refused."""
    options = [*([_DARK, "--force-dark-mode"] if dark else []), f"--window-size={width},1600"]
    out = ["--dump-dom"] if shot is None else [f"--screenshot={shot}"]
    return _console(page, [*options, *out])


def printed(page: Path, target: Path) -> list[str]:
    """Print the page as PDF; the console's lines."""
    return _console(page, [f"--print-to-pdf={target}"])


def dom_of(page: Path, query: str = "", *, ms: int = 20_000) -> str:
    """The page's HTML after its scripts had so many milliseconds of its own clock."""
    common = ["--headless", "--no-sandbox", "--disable-gpu", f"--virtual-time-budget={ms}", "--dump-dom"]
    address = page.absolute().as_uri() + query
    return subprocess.run([_BROWSER, *common, address], capture_output=True, text=True, timeout=120, check=True).stdout


def pixels_of(shot: Path) -> np.ndarray:
    """H x W x 3 of a screenshot."""
    return np.asarray(Image.open(shot).convert("RGB"))


def _console(page: Path, options: list[str]) -> list[str]:
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--hide-scrollbars"]
    done = subprocess.run(
        [_BROWSER, *common, *options, page.absolute().as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]
