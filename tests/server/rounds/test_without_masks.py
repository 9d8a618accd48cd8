"""A study in which one hospital has sentences and no masks, with the real method."""

from __future__ import annotations

import torch

from feddusss.wire import is_statistic
from server.runs.checkpoints import read_model
from server.simulation.simulate import simulate
from tests.server.conftest import HOSPITALS, make_study

CEDAR = {**HOSPITALS[0], "name": "cedar", "label_fraction": 0.0}


def vlm(out, quiet, hospitals, **federation):
    study = make_study(hospitals, pretrain__rounds=1, segment__rounds=0, federation=federation)
    simulate(study, out, reporter=quiet)
    return read_model(out / "checkpoints/vlm.safetensors")


def test_a_hospital_without_masks_moves_the_encoders_and_leaves_the_decoder_to_the_others(quiet, tmp_path):
    without = vlm(tmp_path / "without", quiet, HOSPITALS)
    models = [vlm(tmp_path / "plain", quiet, [*HOSPITALS, CEDAR])]
    models.append(vlm(tmp_path / "secure", quiet, [*HOSPITALS, CEDAR], secure_aggregation=True))
    for model in models:
        learned = [name for name in model if not is_statistic(name, model[name])]
        decoder = {name for name in learned if name.startswith("grounding.")}
        for name in decoder:
            torch.testing.assert_close(model[name], without[name], rtol=1e-6, atol=2e-6)
        others = [name for name in learned if name not in decoder]
        assert decoder and any(not torch.allclose(model[name], without[name], atol=1e-5) for name in others)
    for name, tensor in models[0].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(models[1][name], tensor, rtol=1e-6, atol=2e-6)
