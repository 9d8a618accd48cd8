"""A study in which one hospital has sentences and no masks, with the real method."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dusss_core.manifest import read_manifest, write_manifest
from feddusss.wire import is_statistic
from server.runs.checkpoints import read_model
from server.simulation.materialise import materialise
from server.simulation.simulate import simulate
from tests.server.conftest import HOSPITALS, make_study
from tests.server.unreliable import Listener

CEDAR = {**HOSPITALS[0], "name": "cedar", "label_fraction": 0.0}


@pytest.mark.parametrize(
    ("network", "method", "kept"),
    [("vlm", {"preset": "dusss"}, ("grounding.",)), ("student", {"objective": "cct"}, ("up.", "head."))],
)
def test_a_hospital_without_masks_moves_the_encoders_and_leaves_the_decoder_to_the_others(
    quiet, tmp_path, network, method, kept
):
    def final(name, hospitals, **federation):
        rounds = {"pretrain__rounds": 1, "segment__rounds": int(network == "student")}
        study = make_study(hospitals, **rounds, method=method, federation={**federation, "select": "last"})
        simulate(study, tmp_path / name, reporter=quiet)
        return read_model(tmp_path / name / f"checkpoints/{network}.safetensors")

    without = final("without", HOSPITALS)
    models = [final("plain", [*HOSPITALS, CEDAR])]
    models.append(final("secure", [*HOSPITALS, CEDAR], secure_aggregation=True))
    for model in models:
        learned = [name for name in model if not is_statistic(name, model[name])]
        decoder = {name for name in learned if name.startswith(kept)}
        for name in decoder:
            torch.testing.assert_close(model[name], without[name], rtol=1e-6, atol=2e-6)
        others = [name for name in learned if name not in decoder]
        assert decoder and any(not torch.allclose(model[name], without[name], atol=1e-5) for name in others)
    for name, tensor in models[0].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(models[1][name], tensor, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])
def test_masks_of_pictures_without_sentences_do_not_count_in_step_1(quiet, tmp_path, secure):
    """Cedar trains the grounding decoder as little as if it had none, and does not hold back that of the others."""

    def final(name, hospitals, silent=""):
        federation = {"select": "last", "secure_aggregation": secure}
        study = make_study(hospitals, pretrain__rounds=1, segment__rounds=0, federation=federation)
        files = materialise(study, tmp_path / name)
        for file in files:
            if file.parent.name == silent:
                path = file.parent / "manifest.csv"
                write_manifest(path, [replace(r, text="" if r.labelled else r.text) for r in read_manifest(path)])
        simulate(study, tmp_path / name, reporter=quiet, site_files=files)
        return read_model(tmp_path / name / "checkpoints/vlm.safetensors")

    without = final("without", HOSPITALS)
    model = final("with", [*HOSPITALS, {**CEDAR, "label_fraction": 0.5}], silent="cedar")
    decoder = [name for name in model if name.startswith("grounding.") and not is_statistic(name, model[name])]
    assert decoder
    for name in decoder:
        torch.testing.assert_close(model[name], without[name], rtol=1e-6, atol=2e-6)


def test_a_hospital_without_masks_abstains_from_an_objective_that_nothing_would_hold_there(tmp_path):
    told = Listener()
    study = make_study([*HOSPITALS, CEDAR], segment__rounds=2, method={"objective": "mcnet"})
    simulate(study, tmp_path, reporter=told)
    reason = "the site has no labelled pictures, and method.objective mcnet needs some"
    # asked once, and left in peace after that
    assert [refused for refused in told.refused if refused[0] == "cedar"] == [("cedar", reason)]
    assert [sites for _, _, sites in told.rounds] == [["alder", "birch", "cedar"], ["alder", "birch"]]
