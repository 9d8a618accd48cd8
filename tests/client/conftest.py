"""One tiny site with its file, and messages to it."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from flwr.app import ConfigRecord, RecordDict

from feddusss import wire
from sites.synth.config import SynthConfig
from tests.client import fake_private
from tests.once import write_hospitals
from tests.server import fake_training
from tests.server.conftest import fake, made_once, make_study
from tests.server.fake_training import initial_shared

RUN_KEY = "ab" * 16
TOY = {"min_records": 1, "min_labelled_per_step": 1}
"""A site of six pictures would keep its figures to itself."""


@pytest.fixture
def site_file(tmp_path):
    hospital = {"name": "alder", "train": 16, "val": 6, "test": 6, "label_fraction": 0.5}
    write_hospitals(tmp_path, SynthConfig.model_validate({"size": 32, "hospitals": [hospital]}), 1)
    file = tmp_path / "alder" / "site.yaml"
    file.write_text("site: alder\ndata: {manifest: manifest.csv}\nstate_dir: state\n")
    limit(file, **TOY)
    return file


@pytest.fixture
def private(fake, monkeypatch):
    """The stand-in for private training; `private.site(file)` makes a site ask for it."""
    return fake_private.install(monkeypatch)


def make_content(phase="segment", round=1, arrays=True, vlm=None, study=None, **config):
    """The content of a message as the coordinator makes it."""
    study = study or make_study(method={"preset": "mean_teacher"}).training()
    settings = {
        "training": study.model_dump_json(),
        "run_key": RUN_KEY,
        "phase": phase,
        "round": round,
        "vlm_digest": "",
        **config,
    }
    records = {"arrays": wire.pack(initial_shared(study, phase))} if arrays else {}
    if vlm is not None:
        records["vlm"] = wire.pack(vlm)
    return RecordDict({**records, "config": ConfigRecord(settings)})


def declined(reply: RecordDict) -> str | None:
    """Why the site declined; None if it did not."""
    config = reply.config_records.get("config")
    return config.get("declined") if config is not None else None


def limit(site_file, **limits):
    """Add limits to those of a site's file."""
    lines = site_file.read_text().splitlines()
    if "limits:" in lines:  # as a block, which a simulated site has
        values = yaml.safe_load(site_file.read_text())
        site_file.write_text(yaml.safe_dump({**values, "limits": {**values["limits"], **limits}}, sort_keys=False))
        return
    known = [json.loads(line[8:]) for line in lines if line.startswith("limits: ")]
    others = [line for line in lines if not line.startswith("limits: ")]
    site_file.write_text("\n".join([*others, f"limits: {json.dumps({**(known[0] if known else {}), **limits})}", ""]))


def tensors_of(reply: RecordDict) -> dict[str, torch.Tensor]:
    """The tensors of an answer, in the types that they travelled in."""
    return wire.unpack(reply.array_records["arrays"])


__all__ = ["fake", "fake_training", "made_once"]
