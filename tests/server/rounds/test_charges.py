"""What a site has told of its privacy ledger outlives whatever ends the coordinator."""

from __future__ import annotations

import pytest
from flwr.app import MetricRecord, RecordDict

from dusss_core.errors import UserError
from server.rounds.charges import Charges
from tests.server.rounds.test_replies import message


def told(**figures):
    return message(RecordDict({"metrics": MetricRecord(figures)}))


def test_the_largest_number_goes_back_and_is_on_the_disk(tmp_path):
    charges = Charges(tmp_path / "charges.json", {"birch": 1, "cedar": 9})
    for number in (2, 3, 2):
        charges.note("birch", told(**{"ledger-charges": number, "num-examples": 4}))
    charges.note("cedar", told(**{"ledger-charges": 4}))
    for kept in (charges, Charges(tmp_path / "charges.json")):
        assert kept.seen("birch") == {"charges": 3} and kept.seen("alder") == {}
    assert charges.seen("cedar") == {"charges": 9}


@pytest.mark.parametrize("number", [-1, 0, 2.5, float("nan"), float("inf"), 1e300])
def test_what_is_no_number_of_charges_is_not_kept(number):
    charges = Charges()
    charges.note("birch", told(**{"ledger-charges": number}))
    charges.note("birch", told(loss=1.0))
    charges.note("birch", None)
    assert charges.seen("birch") == {}


def test_a_damaged_file_is_told_of_by_name(tmp_path):
    (tmp_path / "charges.json").write_text("[1]")
    with pytest.raises(UserError, match=r"charges\.json: cannot be read"):
        Charges(tmp_path / "charges.json")
