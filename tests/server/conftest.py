"""Tiny studies over two synthetic hospitals, trained by a stand-in unless a test asks for the true method."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.runs.events import Reporter
from server.study.config import StudyConfig
from tests import once
from tests.server import fake_training

HOSPITALS = [
    {"name": "alder", "train": 16, "val": 6, "test": 6, "label_fraction": 0.5},
    {"name": "birch", "train": 8, "val": 6, "test": 6, "label_fraction": 0.5},
]


def make_study(hospitals=HOSPITALS, **changes) -> StudyConfig:
    """A study of two rounds in each phase; `changes` are top-level keys, or dotted ones with `__`."""
    values = {
        "study": "tiny",
        "image": {"size": 32},
        "vlm": {"image_encoder": "test_resnet", "dim": 16, "decoder_width": 16, "patch_stride": 8},
        "student": {"width": 4},
        "pretrain": {"rounds": 2, "batch": 8, "optimizer": {"lr": 1e-3}},
        "segment": {"rounds": 2, "batch": 8, "optimizer": {"lr": 1e-3}},
        "simulation": {"data": {"kind": "synth", "synth": {"size": 32, "hospitals": list(hospitals)}}},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return StudyConfig.model_validate(values)


def finals(out: Path) -> dict[str, bytes]:
    """The final models of a run, without the header, which names the run."""
    from dusss_core.files import digest_of_tensors
    from server.runs.checkpoints import read_model

    return {
        path.stem: digest_of_tensors(read_model(path))
        for path in sorted((out / "checkpoints").glob("*.safetensors"))
        if path.stem in ("vlm", "student")
    }


@pytest.fixture
def fake(monkeypatch):
    """The stand-in for the method, and no workbenches of other tests."""
    import client.work.workbench

    fake_training.install(monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a crash of the machine is not among the tests
    client.work.workbench.forget()
    yield fake_training
    client.work.workbench.forget()


@pytest.fixture(scope="package", autouse=True)
def made_once():
    """What many tests need alike is drawn and encoded once."""
    with pytest.MonkeyPatch.context() as patch:
        once.install(patch)
        yield


@pytest.fixture
def quiet():
    return Reporter()
