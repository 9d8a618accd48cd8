"""What a hospital is told of the end of its connection is true of every cause that looks so from there."""

from __future__ import annotations

import pytest

from client.node.ending import Situation, why


@pytest.mark.parametrize(
    ("line", "connected"),
    [("SuperNode terminated gracefully.", True), ("[code: 2004] activation failed", False)],
)
def test_a_hospital_whose_coordinator_lost_its_keys_is_not_told_that_its_key_was_revoked_for_certain(line, connected):
    told = why(Situation([line], was_connected=connected, may_be_online=False, public_key="a.pub")).text
    assert "the coordinator has lost its list of keys, and takes them up again by itself" in told
    assert "was revoked" in told and "a.pub" in told and "now and then" in told
    assert "(it was revoked)" not in told


@pytest.mark.parametrize(
    ("line", "connected"),
    [("SuperNode terminated gracefully.", True), ("[code: 2004] activation failed", False)],
)
def test_a_hospital_whose_key_is_not_known_asks_again_within_five_minutes(line, connected):
    told = why(Situation([line], was_connected=connected, may_be_online=False, public_key="a.pub"))
    assert 0 < told.shortest_s <= told.longest_s <= 5 * 60
