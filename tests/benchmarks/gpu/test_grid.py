"""Cells of the grid on a machine without text encoder and data set: with the pack they are what they are anywhere."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import grid, grid_pack, grid_results
from benchmarks.gpu.grid_machine import unpack
from benchmarks.grid.cell import Cell
from dusss_core.errors import UserError
from dusss_core.files import read_tensors

SMALL = ["image.size=32", "segment.rounds=1", "segment.steps=1", "pretrain.rounds=1", "pretrain.steps=1"]


CELL = Cell("qata", 0.5, "supervised", "centralized", "cpu", 1)


@pytest.fixture(scope="module")
def pack(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grid_pack")
    grid_pack.write(small.data, folder)
    return folder


def test_the_data_set_comes_out_as_it_is(small, pack, tmp_path):
    unpack(pack, tmp_path)
    own, other = small.data / "qata_cov19", tmp_path / "data" / "qata_cov19"
    files = sorted(file.relative_to(own) for file in own.rglob("*") if file.is_file())
    assert len(files) == 41 and files == sorted(f.relative_to(other) for f in other.rglob("*") if f.is_file())
    assert all((own / file).read_bytes() == (other / file).read_bytes() for file in files)


def test_a_folder_that_is_no_pack_is_refused(tmp_path):
    with pytest.raises(UserError, match="no pack"):
        unpack(tmp_path, tmp_path / "here")


_FEATURES = """
import sys, torch
from pathlib import Path
from benchmarks.gpu.grid_machine import stand_in, unpack
from dusss_core.config import TextConfig
from dusss_core.files import write_tensors
folder = Path(sys.argv[2])
stand_in(folder, unpack(Path(sys.argv[1]), folder))
from dusss_core.text.bank import build_text_bank
bank = build_text_bank([sys.argv[3]], TextConfig(views=1, max_tokens=32))
tokens, mask = bank.features(torch.tensor([0, 0]), mirrored=torch.tensor([False, True]))
write_tensors(Path(sys.argv[4]), {"tokens": tokens, "mask": mask})
"""


def features(pack: Path, folder: Path, sentence: str) -> subprocess.CompletedProcess:
    """Made in a process of its own, since what stands in stays for the rest of one."""
    line = [sys.executable, "-c", _FEATURES, str(pack), str(folder), sentence, str(folder / "features.safetensors")]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_features_are_the_encoders_and_another_wording_is_refused(pack, tmp_path):
    from benchmarks.gpu.made_up import SENTENCES
    from dusss_core.config import TextConfig
    from dusss_core.text.bank import build_text_bank

    assert features(pack, tmp_path, SENTENCES[0]).returncode == 0
    bank = build_text_bank([SENTENCES[0]], TextConfig(views=1, max_tokens=32))
    own = bank.features(torch.tensor([0, 0]), mirrored=torch.tensor([False, True]))
    there, _ = read_tensors(tmp_path / "features.safetensors")
    assert torch.equal(own[0], there["tokens"]) and torch.equal(own[1], there["mask"])
    assert "a wording is not in the pack" in features(pack, tmp_path, "Something never said.").stderr


@pytest.mark.slow
def test_cells_side_by_side_are_what_each_is_alone_and_one_that_fails_costs_no_other(small, pack, tmp_path):
    from benchmarks import accuracy

    cells = tmp_path / "cells.txt"
    cells.write_text("mean_teacher 0.5 centralized 1 cpu\nno_such 0.5 centralized 1 cpu\ndusss 0.5 federated 1 cpu\n")
    sets = [part for value in SMALL for part in ("--set", value)]
    line = [sys.executable, "-m", "benchmarks.gpu.grid", str(pack), "--cells", str(cells), "--out", str(tmp_path)]
    done = subprocess.run([*line, "--workers", "2", *sets], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        "ended with 1: qata-cpu-50pct-no_such" in done.stdout
        and "--method no_such: not known" in (tmp_path / grid.LOG).read_text()
    )
    assert grid_results.main([str(tmp_path), "--results", str(tmp_path / "there")]) == 0
    found = {file.name: json.loads(file.read_text()) for file in (tmp_path / "there").iterdir()}
    assert sorted(found) == [
        "qata-cpu-50pct-dusss-federated-seed1.json",
        "qata-cpu-50pct-mean_teacher-centralized-seed1.json",
    ]
    here = ["--data", str(small.data), "--dataset", "qata", "--labels", "0.5", "--method", "mean_teacher", "--work",
            str(tmp_path / "work"), "--results", str(tmp_path / "here"), "--set", "simulation.workers=1"]  # fmt: skip
    assert accuracy.main([*here, *sets]) == 0
    alone = json.loads(next((tmp_path / "here").iterdir()).read_text())
    beside = found["qata-cpu-50pct-mean_teacher-centralized-seed1.json"]
    assert {name: alone[name] for name in ("test", "val", "config")} == {
        name: beside[name] for name in ("test", "val", "config")
    }


def test_what_is_at_work_when_the_time_is_over_is_named_with_its_log(tmp_path, monkeypatch, capsys):
    def never_ends(arguments, folder, about, cell):
        (folder / f"{cell.name}.log").write_text("round 3 of 20")
        time.sleep(60)

    monkeypatch.setattr(grid, "_one", never_ends)
    queue = object.__new__(grid._Queue)
    queue.arguments = argparse.Namespace(out=tmp_path, most=0)
    queue.folder, queue.about, queue.waiting, queue.workers = tmp_path, {}, [CELL], 1
    queue.began, queue.end = time.time(), time.time() + 3
    queue.work()
    assert f"lost: {CELL.name}" in capsys.readouterr().out
    assert "round 3 of 20" in (tmp_path / grid.LOG).read_text() and not (tmp_path / grid.RESULTS).exists()


def test_a_list_is_read_before_anything_is_done(tmp_path, capsys):
    file = tmp_path / "cells.txt"
    file.write_text("supervised 0.5 centralized 1 cpu\n\n")
    assert grid.cells_of(file) == [CELL]
    file.write_text("supervised 0.5 centralized 1 cpu\nsupervised half centralized 1 cpu\n")
    assert grid.main(["no_pack", "--cells", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "line 2: 'supervised half centralized 1 cpu' is no cell" in capsys.readouterr().err
    assert grid.main(["no_pack", "--cells", str(tmp_path / "other"), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
