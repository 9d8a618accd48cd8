"""The app of a study that tests make up, as Flower's command line wants it described."""

from __future__ import annotations

import json


def pyproject(name: str, **settings: str | int) -> str:
    """pyproject.toml of the study in tests/server/NAME_app.py, which carries no code, as the real one.

    Args:
        settings: of a run, with their defaults.
    """
    told = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    return f"""\
[project]
name = "{name}"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "feddusss"
[tool.flwr.app.components]
serverapp = "tests.server.{name}_app:server"
clientapp = "tests.server.echo_app:client"
[tool.flwr.app.config]
{told}"""
