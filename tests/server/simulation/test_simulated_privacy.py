"""Simulated sites with a budget are hospitals with a budget: their own files, ledgers and refusals, nothing beside."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from client.privacy.ledger import Ledger
from dusss_core.errors import UserError
from dusss_core.manifest import Record, read_manifest
from dusss_core.privacy.accounting import Budget, epsilon, fits
from server.report.page import write_report
from server.simulation.materialise import materialise, simulation_of
from server.simulation.privacy import at_most_per_patient, charges_of, check_sites, plan_noise
from server.simulation.simulate import evaluate, simulate
from server.study.config import load_study
from server.study.simulation import SimulatedPrivacyConfig
from sites.config import load_site
from tests.client import fake_private
from tests.client.fake_private import RECORDS
from tests.server.conftest import HOSPITALS, make_study
from tests.server.unreliable import Listener

SITES = tuple(hospital["name"] for hospital in HOSPITALS)


def budgeted(epsilon=8.0, *, records=RECORDS, **changes):
    """The tiny study whose sites have a budget."""
    study = make_study(**{"method": {"preset": "mean_teacher"}, **changes})
    study.simulation.privacy = SimulatedPrivacyConfig(epsilon=epsilon, records=records)
    return study


def privacy_of(study) -> SimulatedPrivacyConfig:
    return simulation_of(study).privacy


def site_of(out, name):
    return load_site(out / "sites" / name / "site.yaml")


def ledger_of(out, name) -> Ledger:
    site = site_of(out, name)
    return Ledger(site.state_dir, site.privacy)


@pytest.fixture
def private(fake, monkeypatch):
    return fake_private.install(monkeypatch)


# A whole run.


def test_every_site_pays_for_every_round_from_its_own_ledger(private, quiet, tmp_path):
    summary = simulate(budgeted(segment__rounds=3), tmp_path, reporter=quiet)
    for name in SITES:
        assert site_of(tmp_path, name).privacy.model_dump() == {
            "epsilon": 8.0,
            "delta": 1e-5,
            "cohort": "all",
            "records": RECORDS,
            "records_per_patient": 1,
        }
        entries = ledger_of(tmp_path, name).entries()
        assert [entry.round for entry in entries] == [1, 2, 3]
        # planned: what is bought for the budget, and not more
        assert 7.9 < epsilon([entry.charge for entry in entries], 1e-5) <= 8
    assert summary["rounds"]["segment"]["trained"] == 3


def test_no_figure_comes_through_the_federation_and_the_simulation_says_that_its_own_do_not(private, tmp_path):
    told = Listener()
    summary = simulate(budgeted(), tmp_path, reporter=told)
    assert all(site["dice"] is None and site["n_test"] is None for site in summary["sites"].values())
    assert summary["global"]["dice_mean"] is None
    outside = summary["outside"]
    assert set(outside["sites"]) == set(SITES) and outside["global"]["dice_mean"] > 0
    for name, site in outside["sites"].items():
        assert site["dice"] > 0 and site["n_test"] == 6
        paid = site["privacy"]
        assert (paid["epsilon"], paid["charges"], paid["records"]) == (8.0, 2, RECORDS)
        assert paid["spent"] == pytest.approx(epsilon([e.charge for e in ledger_of(tmp_path, name).entries()], 1e-5))
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert any("covered by no budget" in text for text in told.messages)
    report = write_report(tmp_path).read_text()
    assert "Measured outside the federation" in report and "No budget covers these figures" in report
    assert any(text.startswith("privacy: each site that trains has a budget of epsilon 8") for text in told.messages)
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert not any("val" in line or "seconds" in line for line in lines if line["site"] in SITES)


def test_evaluating_again_costs_nothing(private, quiet, tmp_path):
    before = simulate(budgeted(), tmp_path, reporter=quiet)
    again = evaluate(tmp_path, reporter=quiet)
    assert again["outside"] == before["outside"]
    assert len(ledger_of(tmp_path, "alder").entries()) == 2


def test_a_finished_run_that_is_resumed_keeps_its_ledgers_and_a_fresh_one_has_new_patients(private, quiet, tmp_path):
    simulate(budgeted(), tmp_path, reporter=quiet)
    first = ledger_of(tmp_path, "alder").entries()
    simulate(budgeted(), tmp_path, reporter=quiet, resume=True)
    assert ledger_of(tmp_path, "alder").entries() == first
    simulate(budgeted(), tmp_path, reporter=quiet, force=True)
    entries = ledger_of(tmp_path, "alder").entries()
    assert len(entries) == 2 and entries[0].run != first[0].run


def test_comparisons_are_refused_with_what_to_do_before_anything_is_written(private, quiet, tmp_path):
    with pytest.raises(UserError, match=r"--compare local: .* budget[\s\S]*simulation.privacy.epsilon=null"):
        simulate(budgeted(), tmp_path / "run", compare_with="local", reporter=quiet)
    assert not (tmp_path / "run").exists()


def test_without_epsilon_the_same_pictures_are_trained_on_without_a_budget(private, quiet, tmp_path):
    with_budget, without = tmp_path / "with", tmp_path / "without"
    simulate(budgeted(), with_budget, reporter=quiet)
    summary = simulate(budgeted(epsilon=None), without, compare_with="local", reporter=quiet)
    assert "outside" not in summary and summary["global"]["dice_mean"] > 0 and "local" in summary["compare"]
    for name in SITES:
        assert site_of(without, name).privacy.epsilon is None
        ids = [[r.id for r in read_manifest(site_of(out, name).data.manifest)] for out in (with_budget, without)]
        assert ids[0] == ids[1]


def test_a_study_with_the_true_method_spends_what_was_planned(quiet, tmp_path):
    settings = {"steps_per_round": 2, "sample_rate": 0.2}
    study = budgeted(records=None, student={"width": 4, "norm": "group"}, privacy=settings)
    outside = simulate(study, tmp_path, reporter=quiet)["outside"]
    for name in SITES:
        trained = [r for r in read_manifest(site_of(tmp_path, name).data.manifest) if r.split == "train"]
        paid = outside["sites"][name]["privacy"]
        assert paid["records"] == len(trained) and paid["charges"] == 2 and 7.5 < paid["spent"] <= 8
        assert 0 <= outside["sites"][name]["dice"] <= 1


# The sites.


def test_of_a_patient_as_many_training_pictures_stay_as_are_declared_labelled_ones_first(fake, tmp_path):
    files = materialise(budgeted(records=None), tmp_path)
    for file in files:
        site = load_site(file)
        records = read_manifest(site.data.manifest)
        trained = [record for record in records if record.split == "train"]
        assert max(Counter(record.patient for record in trained).values()) == 1
        assert site.privacy.records == len(trained) < sum(h["train"] for h in HOSPITALS if h["name"] == site.site)
        assert sum(record.split == "test" for record in records) == 6

    def record(name, patient, split="train", labelled=False):
        return Record(name, tmp_path / name, split=split, patient=patient, labelled=labelled)

    records = [
        record("a", "p"),
        record("b", "p", labelled=True),
        record("c", "p"),
        record("d", "q", "test"),
        record("e", "q", "test"),
        record("f", ""),
        record("g", ""),
    ]
    assert [r.id for r in at_most_per_patient(records, 1)] == ["b", "d", "e", "f", "g"]
    assert [r.id for r in at_most_per_patient(records, 2)] == ["a", "b", "d", "e", "f", "g"]


def test_a_site_that_only_evaluates_has_nothing_to_pay_for(fake, tmp_path):
    cedar = {"name": "cedar", "train": 0, "val": 0, "test": 5}
    study = budgeted(simulation__data__synth__hospitals=[*HOSPITALS, cedar])
    files = {file.parent.name: load_site(file) for file in materialise(study, tmp_path)}
    assert files["cedar"].privacy.epsilon is None and files["alder"].privacy.epsilon == 8


def test_the_command_line_gives_a_budget(tmp_path):
    study = load_study("demo", ["simulation.privacy.epsilon=4", "simulation.privacy.records_per_patient=2"])
    assert privacy_of(study).model_dump() == {
        "epsilon": 4.0,
        "delta": 1e-5,
        "records": None,
        "records_per_patient": 2,
    }
    with pytest.raises(UserError, match="did you mean 'epsilon'"):
        load_study("demo", ["simulation.privacy.epsilom=4"])


# The noise.


@pytest.mark.parametrize("kind", ["public_negatives", "groups", "off"])
def test_the_least_noise_that_lets_all_rounds_of_both_phases_fit_is_planned(kind):
    study = budgeted(method={"preset": "dusss"}, pretrain__rounds=3, segment__rounds=5, privacy={"pretrain": kind})
    planned = plan_noise(study, privacy_of(study))
    noise = planned.privacy.noise_multiplier
    charges = charges_of(planned)
    assert [charge.steps for charge in charges] == ([60, 100] if kind != "off" else [100])
    # a group's record is told twice as loud
    assert charges[0].noise_multiplier == (noise / 2 if kind == "groups" else noise)
    budget = Budget(8.0, 1e-5)
    assert fits(budget, charges)
    less = study.model_copy(update={"privacy": study.privacy.model_copy(update={"noise_multiplier": noise - 0.002})})
    assert not fits(budget, charges_of(less))


def test_noise_that_is_given_stays_and_what_was_planned_is_in_the_run_s_config(private, quiet, tmp_path):
    study = budgeted(privacy={"noise_multiplier": 3.0})
    assert plan_noise(study, privacy_of(study)) is study
    simulate(budgeted(), tmp_path, reporter=quiet)
    written = load_study(tmp_path / "config.yaml")
    planned = plan_noise(budgeted(), privacy_of(study)).privacy.noise_multiplier
    assert written.privacy.noise_multiplier == planned
    assert plan_noise(written, privacy_of(written)).privacy.noise_multiplier == planned


def test_a_budget_that_ends_before_the_study_is_told_with_the_round_and_the_line_that_answers(private, quiet, tmp_path):
    study = budgeted(privacy={"noise_multiplier": 1.0}, segment__rounds=40)
    with pytest.raises(UserError) as told:
        simulate(study, tmp_path / "run", reporter=quiet)
    assert "cost 10.6" in str(told.value) and "it ends after round 23 of segment" in str(told.value)
    assert "planned (1.166)" in str(told.value)
    line = "python -m client privacy plan --epsilon 8 --delta 1e-05 --rounds 40 --steps 20 --sample-rate 0.05"
    assert line in str(told.value)
    assert not (tmp_path / "run").exists()


def test_a_budget_that_no_noise_could_meet_is_told(private):
    study = budgeted(epsilon=1e-6, privacy={"sample_rate": 1.0})
    with pytest.raises(UserError, match="no amount of noise is enough"):
        plan_noise(study, privacy_of(study))


def test_planning_widens_no_budget_and_needs_none(fake):
    study = make_study()
    assert plan_noise(study, None) is study
    assert plan_noise(study, SimulatedPrivacyConfig()) is study
    # the noise is all that the sites are told, and it is the study's own setting
    told = [each.training().model_dump() for each in (budgeted(), plan_noise(budgeted(), privacy_of(budgeted())))]
    assert all(each["privacy"].pop("noise_multiplier") for each in told)
    assert told[0] == told[1] and "epsilon" not in json.dumps(told)


# What could not be private.


def test_all_that_every_site_would_decline_is_told_before_the_first_message(fake, quiet, tmp_path):
    study = budgeted(method={"preset": "dusss"}, local_norm=True, records=None)
    with pytest.raises(UserError) as told:
        simulate(study, tmp_path, reporter=quiet)
    for text in ("local_norm: false", "student.norm: group", "privacy.pretrain: public_negatives teaches nothing"):
        assert str(told.value).count(text) == 1
    assert "--set method.preset=mean_teacher" in str(told.value)
    assert not (tmp_path / "run.json").exists()


def test_an_objective_that_mixes_records_is_refused_with_those_that_do_not(fake, quiet, tmp_path):
    study = budgeted(method={"objective": "bcp"}, student={"width": 4, "norm": "group"})
    with pytest.raises(UserError, match=r"bcp mixes the records .* choose one of dusss, mean_teacher_mse, mcnet"):
        simulate(study, tmp_path, reporter=quiet)
    assert not (tmp_path / "run.json").exists()
    check_sites(budgeted(method={"objective": "mcnet"}, student=study.student), materialise(study, tmp_path))


def test_one_site_that_can_pretrain_is_enough(fake, tmp_path):
    study = budgeted(method={"preset": "dusss"}, student={"width": 4, "norm": "group"})
    files = materialise(study, tmp_path)
    check_sites(study, files)
    for file in files:
        file.write_text(file.read_text().replace(f"records: {RECORDS}", "records: 40"))
    with pytest.raises(UserError, match="it needs 500"):
        check_sites(study, files)
    files[0].write_text(files[0].read_text().replace("records: 40", "records: 600"))
    check_sites(study, files)
