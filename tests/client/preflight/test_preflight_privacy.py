"""The preflight tells a private site how its ledger stands, and what to do where it does not; it changes nothing."""

from __future__ import annotations

import shutil

import pytest

from client.preflight import find
from client.preflight.privacy import budget
from client.privacy.ledger import Ledger, note_unpaid
from dusss_core.privacy.accounting import epsilon
from sites.config import load_site
from tests.client.fake_private import make_private
from tests.client.preflight.looks import tree
from tests.client.privacy.test_ledger import ROUND, pay


@pytest.fixture
def private_file(site_file):
    make_private(site_file)
    return site_file


def state_of(site_file):
    return site_file.parent / "state"


def spend(site_file, rounds):
    site = load_site(site_file)
    for round in range(1, rounds + 1):
        pay(Ledger(site.state_dir, site.privacy), round)


def told(site_file, *overrides):
    """The lines about privacy, as the whole preflight would give them; nothing on the disk has changed."""
    before = tree(site_file.parent)
    findings = [finding for finding in find(site_file, overrides) if finding.subject == "privacy"]
    assert tree(site_file.parent) == before
    for finding in findings:
        assert finding.level == "ok" or finding.remedy
    return findings


def only(findings):
    (finding,) = findings
    return finding


def test_a_site_without_a_budget_is_told_that_it_has_none(site_file):
    finding = only(told(site_file))
    assert finding.level == "ok" and "without differential privacy" in finding.message


def test_before_first_use_all_of_the_budget_is_there(private_file):
    finding = only(told(private_file))
    assert finding.level == "ok" and "epsilon 8 at delta 1e-05; nothing is spent yet" in finding.message
    assert not state_of(private_file).exists()


def test_a_whole_ledger_is_told_with_spent_left_and_the_rounds_that_fit(private_file):
    spend(private_file, 3)
    finding = only(told(private_file))
    spent = epsilon([ROUND] * 3, 1e-5)
    assert finding.level == "ok" and f"{spent:.3f} is spent in 3 rounds, {8 - spent:.3f} is left" in finding.message
    assert "more like the last one" in finding.message


def test_a_budget_that_allows_no_further_round_is_a_warning(private_file):
    spend(private_file, 3)
    finding = only(told(private_file, f"privacy.epsilon={epsilon([ROUND] * 3, 1e-5) + 0.01}"))
    assert finding.level == "warning" and "too little for another round" in finding.message


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda state, old: (state / "privacy" / "ledger.json").unlink(), "missing, and this site has one"),
        (lambda state, old: shutil.copy(old, state / "privacy" / "ledger.json"), "an older copy"),
        (lambda state, old: (state / "privacy" / "ledger.json").write_text("{}"), "damaged"),
    ],
    ids=["missing", "rolled back", "damaged"],
)
def test_a_ledger_that_cannot_be_trusted_is_an_error_with_what_to_do(private_file, tmp_path, damage, problem):
    spend(private_file, 1)
    old = shutil.copy(state_of(private_file) / "privacy" / "ledger.json", tmp_path / "old.json")
    spend(private_file, 1)
    damage(state_of(private_file), old)
    finding = only(told(private_file))
    assert finding.level == "error" and problem in finding.message
    assert "put back its newest copy" in finding.remedy


def test_another_delta_than_the_ledger_s_is_an_error(private_file):
    spend(private_file, 1)
    finding = only(told(private_file, "privacy.delta=1e-4"))
    assert finding.level == "error" and "begun with 1e-05" in finding.message and "set it back" in finding.remedy


def test_records_that_were_trained_on_without_privacy_are_void(private_file):
    spend(private_file, 1)
    note_unpaid(state_of(private_file), "tiny", "ab" * 16, "segment", 1)
    finding = only(told(private_file))
    assert finding.level == "error" and finding.message.startswith("VOID")


def test_a_budget_that_was_taken_out_of_the_file_is_a_warning_before_it_is_void(private_file):
    spend(private_file, 1)
    finding = only(told(private_file, "privacy.epsilon=null"))
    assert finding.level == "warning" and "voids the ledger" in finding.message


def test_data_that_break_what_the_file_declares_are_told_before_a_round_is_declined(site_file):
    with site_file.open("a") as file:  # the synthetic patients have up to three pictures
        file.write("privacy: {epsilon: 8, records: 16}\n")
    findings = told(site_file, "data.label_fraction=0.5")
    assert [finding.level for finding in findings] == ["ok", "error", "error"]
    assert "data.label_fraction" in findings[1].message
    assert "records_per_patient" in findings[2].message and "choose among" in findings[2].remedy


def test_a_manifest_that_cannot_be_read_is_the_data_s_affair(private_file):
    (private_file.parent / "manifest.csv").write_text("id\n")
    assert [finding.level for finding in budget(load_site(private_file))] == ["ok"]
