"""The notebooks run from the first cell to the last, and are kept without what they printed."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def test_there_are_three_and_the_site_names_each():
    nav = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert len(NOTEBOOKS) == 3 and all(f"notebooks/{path.stem}.md" in nav for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    cells = nbformat.read(path, 4).cells
    assert not [cell for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=1500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert not list((ROOT / "docs" / "notebooks").glob("runs"))
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            print(output.get("text") or output.get("data", {}).get("text/plain", ""))
