"""A notebook as a page: its words as they are, its code in blocks, and where to run it."""

from __future__ import annotations

import json
from pathlib import Path


def page_of(path: Path) -> str:
    """Markdown of the notebook in `path`."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first, *rest = [_text(cell) for cell in cells if "".join(cell["source"]).strip()]
    run = f"*A notebook: `docs/notebooks/{path.name}` in the repository, to run it and to change it.*"
    return "\n\n".join([first, run, *rest]) + "\n"


def _text(cell: dict) -> str:
    source = "".join(cell["source"]).strip()
    return source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
