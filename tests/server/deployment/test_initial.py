"""The first weights of a phase, drawn in a process of its own, are those that are drawn here."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dusss_core.errors import UserError
from dusss_core.phases import Phase
from dusss_core.training import start_of
from feddusss import configfile
from server.deployment import initial
from server.deployment.initial import first_weights
from tests.server.conftest import make_study


@pytest.fixture
def study(tmp_path):
    made = make_study()
    (tmp_path / "config.yaml").write_text(configfile.dump(made))
    return made


def test_they_are_bit_for_bit_those_that_are_drawn_here_and_leave_nothing(study, tmp_path, monkeypatch):
    expected = start_of(study, Phase.PRETRAIN)
    with monkeypatch.context() as patch:
        patch.setattr("dusss_core.training.start_of", None)  # not drawn here
        drawn = first_weights(tmp_path, study, Phase.PRETRAIN, None)
    assert list(drawn.shared) == list(expected.shared)
    assert all(torch.equal(drawn.shared[name], expected.shared[name]) for name in expected.shared)
    assert not drawn.layers
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_where_that_process_fails_what_is_wrong_is_told_as_ever(study, tmp_path):
    (tmp_path / "config.yaml").write_text("nonsense")
    assert first_weights(tmp_path, study, Phase.PRETRAIN, None).shared
    broken = study.model_copy(update={"vlm": study.vlm.model_copy(update={"image_encoder": "no_such"})})
    (tmp_path / "config.yaml").write_text(configfile.dump(broken))
    with pytest.raises(UserError, match="timm has no model 'no_such'"):
        first_weights(tmp_path, broken, Phase.PRETRAIN, None)


def test_a_network_that_needs_no_encoder_needs_no_process(study, tmp_path, monkeypatch):
    monkeypatch.setattr(initial.subprocess, "run", None)
    assert first_weights(tmp_path, study, Phase.SEGMENT, None).shared


def test_the_coordinator_s_process_does_without_the_encoder_s_package(study, tmp_path):
    code = (
        "import sys; from pathlib import Path; from dusss_core.phases import Phase\n"
        "from server.deployment.initial import first_weights; from server.study.config import load_study\n"
        f"folder = Path({str(tmp_path)!r}); study = load_study(folder / 'config.yaml')\n"
        "first_weights(folder, study, Phase.PRETRAIN, None)\n"
        "sys.exit(bool({'timm', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=200).returncode == 0
