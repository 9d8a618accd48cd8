"""The app bundle (FAB) that the coordinator sends to hospitals: one pyproject.toml and nothing else.

It names the two apps, and both are imported from the release that is installed where they run. So a hospital is sent
settings and never code, and knows the one bundle that it accepts: the one that its own release builds.
"""

from __future__ import annotations

import hashlib
import tempfile
from functools import cache
from pathlib import Path

from dusss_core.files import write_text
from feddusss import __version__, flower

_PYPROJECT = f"""\
[project]
name = "feddusss"
version = "{__version__}"
description = "Settings of a federated DuSSS study; the code is what each machine has installed"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "feddusss"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
study = ""
out = ""
overrides = ""
"""


def write_app(folder: Path) -> Path:
    """Write the app into `folder`, which is made and must be otherwise empty, for `flwr run FOLDER`.

    Raises:
        ValueError: something else is in the folder; it would be sent along.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(path.name for path in folder.iterdir() if path.name != "pyproject.toml")
    if others:
        raise ValueError(f"{folder} holds {others[0]}, which would be sent to the sites")
    write_text(folder / "pyproject.toml", _PYPROJECT)
    return folder


@cache
def release_bundle() -> tuple[bytes, str]:
    """The bundle of this release.

    Returns:
        Its bytes, and their SHA-256 in hex, which is the same on every machine with this release.
    """
    with tempfile.TemporaryDirectory() as folder:
        content = flower.build_fab_from_disk(write_app(Path(folder) / "feddusss"))
    return content, hashlib.sha256(content).hexdigest()
