"""The bugs that the tests are tried on still fit the code; one that does not would be planted nowhere."""

from __future__ import annotations

import pytest
import yaml

from benchmarks import mutants
from dusss_core.errors import UserError


def test_every_bug_of_the_list_can_be_planted():
    assert len(mutants.read(mutants.HERE / "mutants.yaml")) > 100


def test_all_bugs_that_no_longer_fit_are_named_at_once(tmp_path):
    file = "benchmarks/mutants.py"
    here = {"what": "fits", "file": file, "old": "class Mutant:", "new": "", "tests": ["tests/benchmarks"]}
    stale = [
        {**here, "what": "gone", "old": "no such " + "text"},
        {**here, "what": "twice", "old": "import"},
        {**here, "what": "moved", "file": "benchmarks/nowhere.py"},
        {**here, "what": "untested", "tests": ["tests/benchmarks/test_mutants.py::test_nothing"]},
    ]
    path = tmp_path / "list.yaml"
    path.write_text(yaml.safe_dump([here, *stale]))
    with pytest.raises(UserError) as error:
        mutants.read(path)
    assert all(f"'{mutant['what']}'" in str(error.value) for mutant in stale) and "'fits'" not in str(error.value)
