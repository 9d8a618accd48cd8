"""The charge follows from public settings, and a study that can not be private is told why."""

from __future__ import annotations

import pytest

from dusss_core.phases import Phase
from dusss_core.pretraining import pretraining_of
from dusss_core.privacy.charge import Charge
from dusss_core.privacy.mechanism import charge_of, why_not
from tests.dusss_core.privacy.conftest import private_config

PRIVACY = {"noise_multiplier": 1.4, "sample_rate": 0.1, "steps_per_round": 7, "clip": 3.0}


def test_a_round_is_charged_with_the_noise_over_the_true_sensitivity():
    config = private_config(privacy=PRIVACY)
    assert charge_of(config, Phase.SEGMENT) == charge_of(config, Phase.PRETRAIN) == Charge(7, 0.1, 1.4)


def test_groups_cost_twice_the_sensitivity():
    config = private_config(privacy={**PRIVACY, "pretrain": "groups"})
    assert charge_of(config, Phase.PRETRAIN) == Charge(7, 0.1, 0.7)
    assert charge_of(config, Phase.SEGMENT) == Charge(7, 0.1, 1.4)


def test_a_phase_that_private_sites_leave_out_has_no_price():
    with pytest.raises(ValueError, match="off"):
        charge_of(private_config(privacy={"pretrain": "off"}), Phase.PRETRAIN)


@pytest.mark.parametrize(("kind", "fewest"), [("public_negatives", 500), ("groups", 1000)])
def test_pretraining_needs_records(kind, fewest):
    config = private_config(privacy={"pretrain": kind})
    assert why_not(config, Phase.PRETRAIN, fewest) is None
    assert f"it needs {fewest}; set privacy.pretrain: off" in why_not(config, Phase.PRETRAIN, fewest - 1)
    assert why_not(config, Phase.SEGMENT, 1) is None


OWN = ("ditto", "fedrep", "apfl", "finetune")


@pytest.mark.parametrize(
    ("phase", "changes", "reason"),
    [
        (Phase.SEGMENT, {"student": {"width": 4, "norm": "batch"}}, "set student.norm: group"),
        (
            Phase.SEGMENT,
            {"method": {"objective": "bcp"}},
            "method.objective: bcp mixes the records of a batch, and no noise hides one of them: choose one of dusss, "
            "mean_teacher_mse, mcnet, mcnet_v1, cct",
        ),
        (Phase.SEGMENT, {"method": {"objective": "ssnet"}}, "ssnet mixes the records of a batch, and no noise"),
        (Phase.SEGMENT, {"local_norm": True}, "set local_norm: false"),
        (Phase.PRETRAIN, {"local_norm": True}, "set local_norm: false"),
        *((phase, {"batch_statistics": "estimated"}, "without noise: set followed") for phase in Phase),
        (Phase.SEGMENT, {"image": {"size": 32, "mode": "tile"}}, "use resize"),
        *((Phase.SEGMENT, {"personal": kind}, f"personal: {kind} trains a student of the site's own") for kind in OWN),
        (Phase.PRETRAIN, {"privacy": {"pretrain": "off"}}, "privacy.pretrain is off"),
        (Phase.PRETRAIN, {"vlm": {"text": {"tuning": "lora"}}}, "set it to frozen"),
    ],
)
def test_a_study_that_can_not_be_private_says_why(phase, changes, reason):
    assert reason in why_not(private_config(**changes), phase, 2000)


@pytest.mark.parametrize(
    ("objective", "network", "offered"),
    [("lvit", "lvit", "dusss, supervised_with_text"), ("bcp", "encoder", "dusss, mean_teacher_mse, fixmatch")],
)
def test_methods_that_are_offered_in_place_of_one_work_on_the_studys_network(objective, network, offered):
    encoder = {"encoder": "mobilenetv3_small_050"} if network == "encoder" else {"network": network}
    config = private_config(method={"objective": objective}, student={"width": 4, "norm": "group", **encoder})
    assert why_not(config, Phase.SEGMENT, 2000).endswith(f": choose one of {offered}")


def test_pretraining_that_cannot_keep_its_records_apart_is_refused(monkeypatch):
    assert why_not(private_config(), Phase.PRETRAIN, 2000) is None
    monkeypatch.setattr(pretraining_of(private_config()), "coupled", True)
    assert "method.pretraining: dusss mixes the records" in why_not(private_config(), Phase.PRETRAIN, 2000)
    assert why_not(private_config(), Phase.SEGMENT, 2000) is None


def test_what_works_on_weights_alone_is_no_obstacle():
    assert why_not(private_config(prox_mu=0.1, method={"preset": "paper"}), Phase.PRETRAIN, 2000) is None


def test_an_undeclared_number_of_records_is_refused():
    assert "not declared" in why_not(private_config(), Phase.SEGMENT, 0)
