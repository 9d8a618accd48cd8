"""Simulated sites are spread over the GPUs of one machine."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from dusss_core.errors import UserError
from server.simulation.materialise import materialise
from sites.config import load_site
from tests.server.conftest import make_study

FIVE = [{"name": name, "train": 1, "val": 1, "test": 1} for name in ("ash", "birch", "cedar", "elm", "fir")]


def devices(tmp_path, device, gpus, monkeypatch, **options):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    study = make_study(FIVE, simulation__device=device)
    return [load_site(file).device for file in materialise(study, tmp_path, **options)]


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        ("auto", 0, ["auto"] * 5),
        ("auto", 1, ["auto"] * 5),
        ("auto", 2, ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]),
        (["cuda:1", "cuda:3"], 4, ["cuda:1", "cuda:3", "cuda:1", "cuda:3", "cuda:1"]),
        (["cuda:0", "cpu"], 1, ["cuda:0", "cpu", "cuda:0", "cpu", "cuda:0"]),
        ("cuda:1", 2, ["cuda:1"] * 5),
        ("cpu", 2, ["cpu"] * 5),
    ],
)
def test_sites_take_the_devices_in_turn(tmp_path, monkeypatch, device, gpus, expected):
    assert devices(tmp_path, device, gpus, monkeypatch) == expected


def test_on_ray_which_hands_out_gpus_itself_no_site_names_one(tmp_path, monkeypatch):
    assert devices(tmp_path, "auto", 2, monkeypatch, spread=False) == ["auto"] * 5
    assert devices(tmp_path, "cpu", 2, monkeypatch, spread=False) == ["cpu"] * 5
    with pytest.raises(UserError, match="ray"):
        devices(tmp_path, ["cuda:0", "cuda:1"], 2, monkeypatch, spread=False)


def test_sites_are_placed_anew_where_a_fresh_run_finds_other_gpus(tmp_path, monkeypatch):
    assert devices(tmp_path, "auto", 2, monkeypatch)[1] == "cuda:1"
    assert devices(tmp_path, "auto", 1, monkeypatch) == ["auto"] * 5


@pytest.mark.parametrize("device", ["gpu", [], ["cuda:0", "cuda:x"], [["cpu"]]])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(ValidationError, match="device"):
        make_study(FIVE, simulation__device=device)
