"""Every method of step 2 in a federation of unlike sites: FedBN, a run killed and resumed, secure aggregation."""

from __future__ import annotations

import typing

import pytest
import torch

import client.work.workbench
from dusss_core.config import StudentConfig
from dusss_core.objectives import TABLE, objective_of, with_objective
from dusss_core.phases import Phase
from dusss_core.training import can_train
from server.runs.checkpoints import read_model
from server.runs.events import Reporter
from server.simulation.local import load_local
from server.simulation.simulate import simulate
from tests.server.conftest import finals, make_study
from tests.server.unreliable import Listener

SMALL = {"val": 4, "test": 4}
UNLIKE = [
    {"name": "alder", "train": 12, "label_fraction": 0.5, **SMALL},
    {"name": "birch", "train": 8, "label_fraction": 1.0, "text_missing": 1.0, **SMALL},
    {"name": "cedar", "train": 8, "label_fraction": 0.0, **SMALL},
]
"""Some labels; labels only, and no sentence; no labels."""


def study_of(name, **federation):
    """Two rounds of either phase with FedBN, on a network that the method works on."""
    objective = objective_of(with_objective(make_study(), name))
    kinds = typing.get_args(StudentConfig.model_fields["network"].annotation)
    network = next(kind for kind in kinds if kind in objective.networks)
    # a method that gives the student sentences has none for a site without
    told = [{**site, "text_missing": 0.0} for site in UNLIKE] if objective.text == "inference" else UNLIKE
    return make_study(
        told,
        method={"objective": name},
        student={"width": 4, "network": network},
        pretrain__rounds=1,
        segment__rounds=2,
        local_norm=True,
        federation=federation,
    )


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a kill."""


class KilledAfterOneRound(Reporter):
    def on_round_end(self, phase, round, *_):
        if (phase, round) == (Phase.SEGMENT, 1):
            raise Killed


@pytest.mark.parametrize("name", TABLE)
def test_every_objective_goes_on_after_a_kill_with_layers_that_stay_at_the_sites_and_in_sums(quiet, tmp_path, name):
    told = Listener()
    study = study_of(name)
    summary = simulate(study, tmp_path / "straight", reporter=told)
    # who takes part is as the method says, and who does not is refused by name
    reasons = {
        file.parent.name: can_train(study.training(), Phase.SEGMENT, load_local(file, study).splits["train"])
        for file in (tmp_path / "straight" / "sites").glob("*/site.yaml")
    }
    assert [reasons["alder"], reasons["birch"]] == [None, None]
    assert {site for phase, _, sites in told.rounds if phase == Phase.SEGMENT for site in sites} == set(reasons)
    refused = [entry for entry in told.refused if entry[1] != "the site has no sentences"]
    idle = [site for site, reason in reasons.items() if reason is not None]
    assert refused == [(site, reasons[site]) for site in idle]
    # a site that has not trained has no layers to test with, and is named
    assert [site for site, figures in summary["sites"].items() if figures["dice"] is None] == idle
    warnings = [text for text in told.messages if "no test figures of" in text]
    assert len(warnings) == bool(idle) and all(f"no test figures of {', '.join(idle)}: " in text for text in warnings)

    with pytest.raises(Killed):
        simulate(study, tmp_path / "killed", reporter=KilledAfterOneRound())
    client.work.workbench.forget()  # a new process has none
    simulate(study, tmp_path / "killed", reporter=quiet, resume=True)
    assert finals(tmp_path / "killed") == finals(tmp_path / "straight")

    simulate(study_of(name, secure_aggregation=True, secure_threshold=2), tmp_path / "secure", reporter=quiet)
    # after one round: AdamW makes more of what the sum rounds off with each step
    plain, secure = (
        read_model(tmp_path / run / "checkpoints" / "segment-0001.safetensors") for run in ("straight", "secure")
    )
    assert plain.keys() == secure.keys()
    assert not any("running_mean" in key for key in plain)  # FedBN: normalisation layers did not travel
    for key, value in plain.items():
        torch.testing.assert_close(secure[key], value, rtol=1e-5, atol=1e-5)
