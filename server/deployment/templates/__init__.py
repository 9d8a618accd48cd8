"""Text files that `provision` writes, as Jinja templates."""

from __future__ import annotations

from importlib import resources
from typing import Any


def render(template: str, **values: Any) -> str:
    """Fill in a template of this folder; a value that it needs and is not given is an error."""
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    source = resources.files("server.deployment.templates").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(source).render(**values)
