"""Who takes part in a study may change after it has begun, and whoever waits for a person's yes is named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from client.declined import Declined
from client.door.exit import decline
from server.rounds.replies import LIMITED, read_reply
from server.study.config import changed_keys, study_digest
from tests.client.conftest import limit
from tests.server.rounds.test_reply_checks import THREE, lines, short, study  # noqa: F401
from tests.server.unreliable import coordinate

DEPLOYMENT = {"hosts": ["fed.example.org"], "sites": ["alder", "birch"]}


def test_a_begun_study_goes_on_without_a_site_that_left_and_with_one_that_joined(short, tmp_path):  # noqa: F811
    coordinate(study(rounds=2, sites=["alder", "birch"]), tmp_path)
    coordinate(study(rounds=4, sites=["alder", "cedar"]), tmp_path)
    who = {round: set(lines(tmp_path, round)) for round in range(1, 5)}
    assert who == {1: {"alder", "birch"}, 2: {"alder", "birch"}, 3: {"alder", "cedar"}, 4: {"alder", "cedar"}}
    members = json.loads((tmp_path / "run.json").read_text())["members"]
    assert [entry["sites"] for entry in members] == [["alder", "birch"], ["alder", "cedar"]]
    assert all(entry["since"] and entry["release"] for entry in members)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["members"] == members and set(summary["sites"]) == {"alder", "cedar"}


@pytest.mark.parametrize(
    "change",
    [
        {"federation": {"sites": ["alder", "cedar"]}},
        {"federation": {"sites": None}},
        {"deployment": {**DEPLOYMENT, "sites": ["alder", "birch", "cedar"]}},
    ],
)
def test_who_may_take_part_is_no_setting_that_a_begun_run_is_bound_to(change):
    from tests.server.conftest import make_study

    begun = {"federation": {"sites": ["alder", "birch"]}, "deployment": DEPLOYMENT}
    before, now = make_study(**begun), make_study(**{**begun, **change})
    assert changed_keys(before, now) == [] and study_digest(before) == study_digest(now)


WAITS = "waiting for approval at birch (python -m client studies)"


def test_a_study_that_goes_on_without_a_site_that_waits_for_approval_says_so(short, tmp_path):  # noqa: F811
    def careful(grid):
        limit(tmp_path / "sites" / "birch" / "site.yaml", approval=True)

    _, listener = coordinate(study(), tmp_path, prepare=careful)
    assert f"node 2 takes no part: {WAITS}" in listener.messages
    assert listener.outside == [("node 2", WAITS)]
    assert set(lines(tmp_path, 1)) == {"alder", "cedar"}


@pytest.mark.parametrize("ends", ["approved", "disconnected"])
def test_a_site_is_not_said_to_wait_any_more_when_it_was_approved_or_is_gone(short, tmp_path, ends):  # noqa: F811
    file = tmp_path / "sites" / "birch" / "site.yaml"

    def careful(grid):
        limit(file, approval=True)

        def later(looks):
            if looks == 4:
                limit(file, approval=ends == "disconnected")
                grid.away |= {"birch"} if ends == "disconnected" else set()

        grid.on_look = later

    _, listener = coordinate(study(rounds=6), tmp_path, prepare=careful)
    assert listener.outside == [("node 2", WAITS), ("node 2", "")]
    assert ("birch" in lines(tmp_path, 6)) == (ends == "approved")


def test_a_study_that_ends_for_a_limit_of_its_sites_says_so_with_the_exit_code_of_what_can_be_mended(
    fake,
    tmp_path,
    capsys,
):
    from dusss_core.files import write_text
    from feddusss import configfile
    from server.__main__ import main
    from tests.server.conftest import make_study

    write_text(tmp_path / "study.yaml", configfile.dump(make_study()))
    command = ["simulate", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "run")]
    assert main(command) == 0
    for site in ("alder", "birch"):
        limit(tmp_path / "run" / "sites" / site / "site.yaml", max_learning_rate=1e-9)
    capsys.readouterr()
    assert main([*command, "--force"]) == 2
    told = capsys.readouterr().err
    assert "0 of 2 sites could be used" in told and told.count("(limits.max_learning_rate)") == 2
    assert "-> start afresh with settings within these limits" in told


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("a learning rate of 1; this site allows 0.1 (limits.max_learning_rate)", LIMITED),
        ("this site's private state would take more disk than it allows (1 GB, limits.max_disk_gb)", LIMITED),
        ("this site trains only between 20:00-06:00 (limits.hours)", ""),
        ("another process is working for this site", ""),
    ],
)
def test_a_limit_that_time_alone_does_not_change_is_told_from_one_that_it_does(reason, kind):
    declined = SimpleNamespace(has_error=lambda: False, content=decline(None, "train", Declined(reason)))
    assert read_reply("alder", declined).kind == kind
