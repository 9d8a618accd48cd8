"""The ledger tells at least what was released, whatever happens to the machine, the disk or its files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from client.declined import Declined
from client.privacy.ledger import CHARGED, Ledger, LedgerError, note_unpaid
from dusss_core.errors import UserError
from dusss_core.privacy.accounting import Budget, epsilon, fits
from dusss_core.privacy.charge import Charge
from sites.config import PrivacyConfig

ROUND = Charge(steps=20, sample_rate=0.05, noise_multiplier=1.0)
LOST = "put back its newest copy"


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def open_ledger(state, **changes) -> Ledger:
    values = {"epsilon": 8.0, "records": 500, **changes}
    return Ledger(state, PrivacyConfig.model_validate(values))


def pay(ledger, round=1, charge=ROUND, **others):
    about = {"study": "tiny", "run": "ab" * 16, "phase": "segment", "message": "0" * 64, **others}
    return ledger.charge(charge, round=round, **about)


# Ordinary days.


def test_charges_add_up_across_processes_runs_phases_and_studies(state):
    assert open_ledger(state).entries() == []
    pay(open_ledger(state))
    pay(open_ledger(state), run="cd" * 16)
    pay(open_ledger(state), phase="pretrain")
    pay(open_ledger(state), study="other")
    entries = open_ledger(state).entries()
    assert [entry.number for entry in entries] == [1, 2, 3, 4]
    assert [(entry.study, entry.phase) for entry in entries][2:] == [("tiny", "pretrain"), ("other", "segment")]


def test_a_round_that_is_trained_again_is_paid_again(state):
    for _ in range(3):
        pay(open_ledger(state), round=1)
    assert len(open_ledger(state).entries()) == 3


def test_a_round_that_goes_beyond_the_budget_is_declined_with_spent_and_left_and_changes_nothing(state):
    budget = Budget(4.0, 1e-5)
    paid = 0
    while fits(budget, [ROUND] * (paid + 1)):
        pay(open_ledger(state, epsilon=4.0), paid + 1)
        paid += 1
    before = (state / "privacy" / "ledger.json").read_bytes()
    with pytest.raises(Declined) as declined:
        pay(open_ledger(state, epsilon=4.0), paid + 1)
    spent, then = (epsilon([ROUND] * n, 1e-5) for n in (paid, paid + 1))
    assert declined.value.abstains
    assert f"epsilon {spent:.3f} of 4 is spent" in str(declined.value)
    assert f"{4 - spent:.3f} is left" in str(declined.value) and f"{then:.3f}" in str(declined.value)
    assert (state / "privacy" / "ledger.json").read_bytes() == before
    # what costs less still fits
    pay(open_ledger(state, epsilon=4.0), charge=Charge(1, 0.001, 4.0))


@pytest.mark.parametrize("noise", [float("inf"), float("nan"), 0.0, -1.0, 1e-9])
def test_no_setting_of_a_message_makes_a_round_look_free(state, noise):
    with pytest.raises(Declined):
        pay(open_ledger(state, epsilon=100.0), charge=Charge(20, 0.05, noise))


def test_more_records_of_a_patient_cost_more(state):
    pay(open_ledger(state, epsilon=3.0))
    shutil.rmtree(state)
    with pytest.raises(Declined):
        pay(open_ledger(state, epsilon=3.0, records_per_patient=2))


@pytest.mark.parametrize("read", ["_parse", "_head", "_in_audit_log"])
def test_who_reads_while_a_round_is_paid_for_finds_a_whole_ledger(state, monkeypatch, read):
    pay(open_ledger(state), round=1)
    reader = open_ledger(state)
    found = getattr(reader, read)

    def meanwhile():
        told = found()
        pay(open_ledger(state), round=2)
        return told

    monkeypatch.setattr(reader, read, meanwhile)
    assert len(reader.entries()) >= 1


def test_each_charge_is_in_the_audit_log(state):
    entries = [pay(open_ledger(state), round) for round in (1, 2)]
    lines = [json.loads(line) for line in (state / "audit.jsonl").read_text().splitlines()]
    told = [(line["fields"]["number"], line["fields"]["sha256"]) for line in lines if line["event"] == CHARGED]
    assert told == [(entry.number, entry.sha256) for entry in entries]


# Crashes.


class Killer:
    """Ends the process after the n-th thing that is done to the disk (before the one that follows it); a file that is
    written whole is torn in the middle."""

    NAMES = ("fsync", "replace", "rename", "write", "pwrite", "ftruncate", "mkdir", "fchmod")

    def __init__(self, at: int):
        self.at, self.count = at, 0

    def install(self) -> None:
        for name in self.NAMES:
            setattr(os, name, self._wrap(getattr(os, name)))
        Path.write_bytes = self._torn(Path.write_bytes)

    def _due(self) -> bool:
        self.count += 1
        return self.count == self.at

    def _wrap(self, original):
        def step(*arguments, **options):
            due = self._due()
            try:
                return original(*arguments, **options)
            finally:
                if due:
                    os._exit(9)

        return step

    def _torn(self, original):
        def step(path, content):
            if self._due():
                original(path, content[: len(content) // 2])
                os._exit(9)
            return original(path, content)

        return step


def in_a_child(work) -> int:
    """Run `work` in a process of its own; its exit code."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("paid_before", [0, 2])
def test_a_kill_at_any_write_leaves_the_ledger_before_or_after_and_never_less_than_was_released(
    state, tmp_path, monkeypatch, paid_before
):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the process is killed, not the machine
    epsilon([ROUND], 1e-5)  # imports what the children need
    for round in range(1, paid_before + 1):
        pay(open_ledger(state), round)
    whole, steps = tmp_path / "whole", 0
    if state.exists():
        shutil.copytree(state, whole)
    outcomes = set()
    while True:
        steps += 1
        shutil.rmtree(state, ignore_errors=True)
        if whole.exists():
            shutil.copytree(whole, state)
        released = tmp_path / "released"
        released.unlink(missing_ok=True)

        def work(at=steps, released=released):
            Killer(at).install()
            pay(open_ledger(state), paid_before + 1)
            released.touch()

        code = in_a_child(work)
        assert code in (0, 9)
        paid = len(open_ledger(state).entries())
        assert paid in (paid_before, paid_before + 1)
        assert paid == paid_before + 1 or not released.exists()
        outcomes.add(paid)
        # and the next round is paid for as if nothing had happened
        assert pay(open_ledger(state), paid_before + 1).number == paid + 1
        if code == 0:
            break
    assert outcomes == {paid_before, paid_before + 1} and steps > 15


def test_a_full_disk_declines_the_round_and_leaves_the_ledger(state, monkeypatch):
    pay(open_ledger(state))
    before = (state / "privacy" / "ledger.json").read_bytes()

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        pay(open_ledger(state), 2)
    assert (state / "privacy" / "ledger.json").read_bytes() == before


def test_of_processes_that_want_the_last_round_at_once_one_gets_it(state):
    limit = epsilon([ROUND] * 2, 1e-5)
    pay(open_ledger(state, epsilon=limit))
    gate, opened = os.pipe()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os.close(opened)
            os.read(gate, 1)  # until the parent closes its end
            try:
                pay(open_ledger(state, epsilon=limit), 2)
                os._exit(0)
            except Declined:
                os._exit(3)
            except BaseException:
                os._exit(1)
        children.append(child)
    os.close(opened)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes == [0, 3, 3, 3]
    assert len(open_ledger(state, epsilon=limit).entries()) == 2


# Files that are lost, set back or damaged.


def refused(state, **changes) -> str:
    """The error that reading and charging both give."""
    with pytest.raises(LedgerError) as reading:
        open_ledger(state, **changes).entries()
    with pytest.raises(LedgerError) as charging:
        pay(open_ledger(state, **changes), 9)
    assert str(reading.value) == str(charging.value)
    return str(reading.value)


@pytest.mark.parametrize("gone", [["privacy"], ["privacy", "privacy.head"], ["privacy", "audit.jsonl", "audit.head"]])
def test_a_ledger_that_is_missing_after_first_use_is_an_error(state, gone):
    pay(open_ledger(state))
    for name in gone:
        path = state / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = refused(state)
    assert f"{state / 'privacy' / 'ledger.json'}: missing" in text and LOST in text


def test_a_head_that_is_missing_is_made_good_by_the_audit_log_alone(state):
    for round in (1, 2):
        pay(open_ledger(state), round)
    (state / "privacy.head").unlink()
    assert len(open_ledger(state).entries()) == 2
    for log in state.glob("audit.*"):
        log.unlink()
    assert "privacy.head" in refused(state) and LOST in refused(state)


@pytest.mark.parametrize("also", [[], ["privacy.head"]], ids=["ledger", "ledger and head"])
def test_an_older_copy_is_refused(state, tmp_path, also):
    pay(open_ledger(state), 1)
    shutil.copytree(state, tmp_path / "old")
    pay(open_ledger(state), 2)
    for name in ["privacy/ledger.json", *also]:
        shutil.copyfile(tmp_path / "old" / name, state / name)
    text = refused(state)
    assert "1 charges" in text and "knows of 2" in text and "older copy" in text and LOST in text


def test_a_state_that_was_set_back_whole_is_refused_where_the_coordinator_has_seen_more(state, tmp_path):
    pay(open_ledger(state), 1)
    shutil.copytree(state, tmp_path / "old")
    pay(open_ledger(state), 2)
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "old", state)
    with pytest.raises(LedgerError, match="the coordinator has seen 2"):
        pay(open_ledger(state), 3, seen=2)
    pay(open_ledger(state), 2, seen=1)


def test_another_ledger_of_the_same_length_is_refused(state, tmp_path):
    pay(open_ledger(state), 1)
    pay(open_ledger(tmp_path / "other"), 1, charge=Charge(1, 0.001, 4.0))
    shutil.copyfile(tmp_path / "other" / "privacy" / "ledger.json", state / "privacy" / "ledger.json")
    assert "not the one that the audit log knows" in refused(state)


def test_no_changed_byte_makes_the_ledger_tell_less(state):
    for round in (1, 2, 3):
        pay(open_ledger(state), round)
    path = state / "privacy" / "ledger.json"
    content = path.read_bytes()
    spent = [entry.charge for entry in open_ledger(state).entries()]
    damaged = 0
    for at in range(0, len(content), 17):
        for byte in (b"0", b"}"):
            path.write_bytes(content[:at] + byte + content[at + 1 :])
            try:
                assert [entry.charge for entry in open_ledger(state).entries()] == spent
            except LedgerError as error:
                assert str(path) in str(error) and error.remedy
                damaged += 1
    assert damaged > 50
    for at in range(0, len(content) - 2, 97):
        path.write_bytes(content[:at])
        assert str(path) in refused(state)


@pytest.mark.parametrize("change", ["removed", "moved", "edited"])
def test_entries_that_were_tampered_with_are_named(state, change):
    for round in (1, 2, 3):
        pay(open_ledger(state), round)
    path = state / "privacy" / "ledger.json"
    content = json.loads(path.read_text())
    entries = content["entries"]
    if change == "removed":
        del entries[1]
    elif change == "moved":
        entries[0], entries[1] = entries[1], entries[0]
    else:
        entries[1]["noise_multiplier"] = 100.0
    path.write_text(json.dumps(content))
    named = {"removed": 2, "moved": 1, "edited": 3}[change]  # an edit shows in the entry that follows
    assert f"damaged at charge {named}" in refused(state)


# Settings that must not move.


@pytest.mark.parametrize(("key", "value"), [("delta", 1e-3), ("cohort", "others")])
def test_another_delta_or_cohort_after_first_use_is_an_error(state, key, value):
    pay(open_ledger(state))
    text = refused(state, **{key: value})
    assert f"privacy.{key}" in text and "set it back" in text


def test_the_budget_is_the_hospitals_to_raise_and_to_lower(state):
    pay(open_ledger(state, epsilon=8.0))
    with pytest.raises(Declined):
        pay(open_ledger(state, epsilon=1.0), 2)
    pay(open_ledger(state, epsilon=20.0), 2)


def test_records_that_were_used_without_privacy_are_never_paid_for(state):
    pay(open_ledger(state))
    note_unpaid(state, "tiny", "ab" * 16, "segment", 2)
    with pytest.raises(Declined, match="without differential privacy before"):
        pay(open_ledger(state), 3)
    assert open_ledger(state).is_void()
