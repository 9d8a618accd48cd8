"""A tutorial's blocks are typed as they stand, but for sizes, and leave what it says that they leave."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorials" / "own_pictures.md"
SMALLER = (
    "--set pretrain.rounds=1 --set segment.rounds=1 --set pretrain.steps=1 --set segment.steps=1 "
    "--set simulation.workers=1"
)
"""Rounds that take a moment."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def small(block: str) -> str:
    """The same lines, for fewer pictures and steps."""
    block = block.replace("train: 320", "train: 40").replace("label_fraction: 0.05", "label_fraction: 0.4")
    return re.sub(r"^(python -m server simulate .*)$", rf"\1 {SMALLER}", block, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_your_own_pictures_goes_from_a_folder_to_marked_pictures(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    told = ""
    assert len(blocks(PAGE)) == 4
    for block in blocks(PAGE):
        done = subprocess.run(
            ["bash", "-ec", small(block)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        told += done.stdout
    for words in (
        "40 records",
        "fit to train on (0 errors",
        "federated supervised training",
        "Dice, mean over pictures",
    ):
        assert words in told, words
    for name in ("mine/sites/site_1/check.html", "runs/own_data/report.html"):
        assert (tmp_path / name).is_file(), name
    assert len(list((tmp_path / "marked").glob("*_overlay.png"))) == 12
