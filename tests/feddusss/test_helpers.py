"""How many hospitals may help a lying coordinator: what docs/secure_aggregation.md promises, and one more."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest

from feddusss.secagg.member import default_threshold
from feddusss.secagg.records import Refused
from tests.feddusss.sessions import NAMES, Session, vectors

PAGE = Path(__file__).parents[2] / "docs" / "secure_aggregation.md"


def learnt(members: int, threshold: int, helpers: int) -> bool:
    """Whether a coordinator has one site's update: its helpers vote and reveal twice, for all survivors, and for all
    but that site; the others do so once, divided between the two sets as is best for it."""
    names = NAMES[:members]
    target, *others = names[helpers:]
    values, session = vectors(names), Session(names, threshold)
    session.begin()
    session.deal()
    session.mask(values)
    lied = copy.deepcopy(session)
    lied.convener._survivors.remove(target)
    lied.convener._sum = np.sum([session.masked[name] for name in names if name != target], axis=0, dtype=np.uint64)
    needed = max(0, threshold - helpers - 1)
    try:
        session.vote([*names[:helpers], target, *others[:needed]])
        lied.vote([*names[:helpers], *others[needed:]])
        session.reveal()
        lied.reveal()
    except Refused:
        return False
    return np.array_equal(session.convener.total() - lied.convener.total(), values[target])


@pytest.mark.parametrize(("members", "threshold"), [(4, 3), (5, 3), (5, 4)])
def test_as_many_helpers_as_are_promised_give_nothing_away_and_one_more_does(members, threshold):
    promised = 2 * threshold - members - 1
    assert not any(learnt(members, threshold, helpers) for helpers in range(promised + 1))
    assert learnt(members, threshold, promised + 1)


def test_the_table_of_thresholds_is_that_of_the_code():
    row = re.compile(r"^\| (\d+) \| (\d+) \| (none|\d+) \| (none|\d+) \|$", re.MULTILINE)
    found = [[0 if cell == "none" else int(cell) for cell in cells] for cells in row.findall(PAGE.read_text("utf-8"))]
    assert len(found) == 6
    for sites, threshold, lost, helpers in found:
        assert threshold == default_threshold(sites) and lost == sites - threshold
        # of fewer than two others nothing is hidden
        assert helpers == min(2 * threshold - sites - 1, sites - 2)
