"""The quick selection of `benchmarks/faults.py`, each survived."""

from __future__ import annotations

import pytest

from benchmarks.fault_kinds import FAULTS
from benchmarks.fault_lab import open_lab
from benchmarks.faults import selected, study_of_faults, survive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with open_lab(tmp_path_factory.mktemp("lab"), study_of_faults()) as lab:
        yield lab


@pytest.mark.parametrize("name", [fault.name for fault in selected(None, quick=True)])
def test_the_study_completes_and_the_log_names_what_happened(lab, name):
    outcome, why = survive(lab, FAULTS[name])
    if why.startswith("not done"):
        pytest.skip(why)
    assert outcome is not None, why
