"""Pages for people: HTML from a package's templates."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


def template(folder: Path, name: str, filters: Mapping[str, Callable[..., Any]] | None = None) -> Template:
    """The template `name` of `folder`: what is put in is escaped, and a name that is not given is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(name)


def write_private(path: Path, text: str) -> None:
    """Write a page that shows patients: nobody but its owner can read it, at no moment.

    Raises:
        UserError: disk full or no permission.
    """
    from dusss_core.files import write_atomically

    def write(temporary: Path) -> None:
        temporary.touch(mode=0o600)
        temporary.chmod(0o600)
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def data_url(pixels: Any) -> str:
    """H x W x 3 uint8 as a PNG that stands in the page itself."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def outline(mask: Any) -> Any:
    """H x W bool -> H x W bool: the pixels of the mask that have a neighbour outside it."""
    import numpy as np

    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
