"""python -m client privacy says what was spent and left, and what a study would cost."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from client.__main__ import main
from client.privacy.ledger import Ledger, note_unpaid
from dusss_core.privacy.accounting import Budget, epsilon, fits
from dusss_core.privacy.charge import Charge
from sites.config import load_site
from tests.client.privacy.test_ledger import ROUND, pay


@pytest.fixture
def site_file(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text(
        "site: alder\ndata: {manifest: manifest.csv}\nstate_dir: state\nprivacy: {epsilon: 8.0, records: 500}\n"
    )
    return file


def spend(site_file, **rounds):
    site = load_site(site_file)
    ledger = Ledger(site.state_dir, site.privacy)
    for study, count in rounds.items():
        for round in range(1, count + 1):
            pay(ledger, round, study=study)


def shown(capsys, *arguments) -> dict:
    code = main(["privacy", *arguments, "--json"])
    return {"code": code, **json.loads(capsys.readouterr().out)}


def test_before_first_use_all_of_the_budget_is_left_and_nothing_is_written(site_file, capsys):
    told = shown(capsys, "--site", str(site_file))
    assert (told["code"], told["spent"], told["left"], told["charges"], told["rounds_left"]) == (0, 0, 8, 0, None)
    assert not (site_file.parent / "state").exists()


def test_spent_and_left_are_told_over_all_and_by_study_and_run(site_file, capsys):
    spend(site_file, knee=3, lung=2)
    told = shown(capsys, "--site", str(site_file))
    spent = epsilon([ROUND] * 5, 1e-5)
    assert told["code"] == 0 and told["charges"] == 5 and not told["void"]
    assert told["spent"] == pytest.approx(spent) and told["left"] == pytest.approx(8 - spent)
    assert told["spent_prv"] < told["spent"]
    assert [(run["study"], run["phase"], run["rounds"]) for run in told["runs"]] == [
        ("knee", "segment", 3),
        ("lung", "segment", 2),
    ]
    assert told["runs"][0]["alone"] == pytest.approx(epsilon([ROUND] * 3, 1e-5))
    left = told["rounds_left"]
    budget = Budget(8.0, 1e-5)
    assert fits(budget, [ROUND] * (5 + left)) and not fits(budget, [ROUND] * (6 + left))


def test_a_person_reads_budget_spent_and_left(site_file, capsys):
    spend(site_file, knee=2)
    assert main(["privacy", "--site", str(site_file)]) == 0
    text = capsys.readouterr().out
    assert "epsilon 8 at delta 1e-05, for a patient" in text and "more rounds like the last one" in text
    assert "knee" in text and f"{epsilon([ROUND] * 2, 1e-5):.3f}" in text


def test_a_ledger_that_speaks_for_too_little_is_void_and_the_command_fails(site_file, capsys):
    spend(site_file, knee=1)
    note_unpaid(site_file.parent / "state", "knee", "ab" * 16, "segment", 2)
    assert main(["privacy", "--site", str(site_file)]) == 1
    assert "VOID" in capsys.readouterr().out


def test_a_damaged_ledger_is_named_with_the_remedy(site_file, capsys):
    spend(site_file, knee=1)
    ledger = site_file.parent / "state" / "privacy" / "ledger.json"
    ledger.write_text("{")
    assert main(["privacy", "--site", str(site_file)]) == 2
    error = capsys.readouterr().err
    assert str(ledger) in error and "->" in error


def test_a_site_without_a_budget_is_told_how_to_set_one(site_file, capsys):
    assert main(["privacy", "--site", str(site_file), "--set", "privacy.epsilon=null"]) == 2
    assert "privacy.epsilon" in capsys.readouterr().err


def test_a_budget_without_the_number_of_records_is_refused_with_the_reason(site_file, capsys):
    assert main(["privacy", "--site", str(site_file), "--set", "privacy.records=null"]) == 2
    error = capsys.readouterr().err
    assert "--set privacy.records=null: " in error and "'records' must be given with 'epsilon'" in error


def test_a_plan_answers_the_noise_that_keeps_within_the_budget(capsys):
    arguments = ["plan", "--epsilon", "8", "--rounds", "50", "--steps", "20", "--sample-rate", "0.05"]
    told = shown(capsys, *arguments)
    assert told["code"] == 0 and told["steps"] == 1000
    assert told["epsilon"] <= 8 and fits(Budget(8, 1e-5), [Charge(1000, 0.05, told["noise_multiplier"])])
    assert not fits(Budget(8, 1e-5), [Charge(1000, 0.05, told["noise_multiplier"] - 0.002)])
    assert main(["privacy", *arguments]) == 0
    assert f"privacy.noise_multiplier: {told['noise_multiplier']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--epsilon", "0", "--rounds", "5"], "--epsilon 0.0"),
        (["--epsilon", "nan", "--rounds", "5"], "--epsilon nan"),
        (["--epsilon", "1", "--rounds", "0"], "--rounds 0"),
        (["--epsilon", "1", "--rounds", "5", "--sample-rate", "2"], "--sample-rate 2.0"),
        (["--epsilon", "1", "--rounds", "5", "--delta", "1"], "--delta 1.0"),
        (
            ["--epsilon", "0.001", "--rounds", "1000000", "--steps", "1000000", "--sample-rate", "1"],
            "no amount of noise",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_with_a_remedy(capsys, arguments, named):
    assert main(["privacy", "plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert named in error and "->" in error


def test_help_loads_nothing_heavy():
    look = (
        "import sys, client.__main__ as m\n"
        "for arguments in (['privacy', '--help'], ['privacy', 'plan', '--help']):\n"
        "    try: m.main(arguments)\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'opacus', 'flwr', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]" and "--sample-rate" in done.stdout
