"""What a monitoring system is told of a site: from its own folder alone, and true."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import urllib.request
from pathlib import Path

import pytest

from client.__main__ import _alone, main
from client.answer import answer
from client.state.store import client_runs
from client.status import Collector
from dusss_core.errors import UserError
from feddusss import cli
from feddusss.monitoring import start
from sites.config import load_site
from tests.client.conftest import limit, make_content
from tests.server.conftest import make_study


def status(capsys, site_file) -> dict:
    assert main(["status", "--json", "--site", str(site_file)]) == cli.OK
    return json.loads(capsys.readouterr().out)


def scraped(site_file) -> str:
    server = start(Collector(load_site(site_file)), 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as page:
            return page.read().decode()
    finally:
        server.shutdown()


def test_a_site_that_did_nothing_says_so(site_file, capsys):
    state = status(capsys, site_file)
    assert not state["running"] and state["answers"] == 0 and state["last_message"] is None
    assert state["audit_whole"] is None and state["epsilon_left"] is None and state["ledger"] is None
    assert main(["status", "--site", str(site_file)]) == cli.OK
    assert "its client does not run" in capsys.readouterr().out


def test_messages_answers_and_refusals_are_counted_by_the_audit_log(fake, site_file, capsys):
    answer("train", make_content(), site_file)
    answer("train", make_content(phase="pretrain", study=make_study(pretrain__rounds=9999).training()), site_file)
    state = status(capsys, site_file)
    assert (state["answers"], state["declined"]) == (1, 1)
    assert state["answers_bytes"] > 0 and state["audit_whole"] and state["state_bytes"] > 0
    assert "max_rounds" in state["last_declined"]["reason"]
    page = scraped(site_file)
    assert "feddusss_answers_total 1.0" in page and "feddusss_declined_total 1.0" in page
    assert f"feddusss_answer_bytes_total {float(state['answers_bytes'])}" in page
    assert "feddusss_seconds_since_last_answer" in page and "feddusss_audit_whole 1.0" in page
    log = site_file.parent / "state" / "audit.jsonl"
    log.write_text(log.read_text().replace("train", "trein"))
    assert status(capsys, site_file)["audit_whole"] is False


def test_folders_that_go_away_while_the_state_is_looked_at_do_not_cost_the_status(site_file, capsys, monkeypatch):
    """A client at work drops the state of older runs, and proposals that others push out."""
    state = site_file.parent / "state"
    for folder in ("studies/tiny/old", "approvals/tiny"):
        (state / folder).mkdir(parents=True)
        (state / folder / "one.json").write_text("{}")
    scandir = os.scandir

    def looked_at_late(path):
        if not isinstance(path, int) and Path(path).name in ("old", "tiny"):
            shutil.rmtree(path, ignore_errors=True)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", looked_at_late)
    assert status(capsys, site_file)["waiting_for_approval"] == []
    assert not list(state.glob("*/tiny"))


def test_a_client_starts_also_while_a_monitor_looks_whether_it_runs(site_file):
    site = load_site(site_file)
    with _alone(site), pytest.raises(UserError, match="is running for this site already"), _alone(site):
        pass
    with (site.state_dir / "client.lock").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.1, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with _alone(site):
            assert client_runs(site.state_dir)


def test_a_client_that_runs_and_a_study_that_waits_are_told(fake, site_file, capsys):
    limit(site_file, approval=True)
    study = make_study()
    content = make_content(study=study.training(), terms=study.terms({}).model_dump_json())
    answer("query", content, site_file)
    with (site_file.parent / "state" / "client.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = status(capsys, site_file)
        assert state["running"] and state["waiting_for_approval"] == ["tiny"]
        page = scraped(site_file)
    assert "feddusss_client_running 1.0" in page and "feddusss_studies_waiting_for_approval 1.0" in page


def test_what_is_left_of_a_privacy_budget_is_told(private, site_file, capsys):
    private.site(site_file)
    assert status(capsys, site_file)["epsilon_left"] > 0
    assert "feddusss_epsilon_left" in scraped(site_file)


def test_a_ledger_that_is_missing_takes_no_other_figure_away(private, site_file, capsys):
    private.site(site_file)
    answer("train", make_content(), site_file)
    ledger = site_file.parent / "state" / "privacy" / "ledger.json"
    assert ledger.is_file()
    ledger.unlink()
    state = status(capsys, site_file)
    assert state["epsilon_left"] == 0 and "missing" in state["ledger"] and state["audit_whole"]
    assert "feddusss_epsilon_left 0.0" in scraped(site_file)
    assert main(["status", "--site", str(site_file)]) == 0
    assert "python -m client privacy says what to do" in capsys.readouterr().out


def test_the_page_is_for_this_machine_alone(site_file):
    server = start(Collector(load_site(site_file)), 0)
    try:
        assert server.server_address[0] == "127.0.0.1"
    finally:
        server.shutdown()


def test_a_port_that_is_taken_is_named(site_file, capsys):
    server = start(Collector(load_site(site_file)), 0)
    try:
        argv = ["metrics", "--port", str(server.server_port), "--site", str(site_file)]
        assert main(argv) == cli.USER_MUST_MEND
    finally:
        server.shutdown()
    assert "choose another --port" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "metrics"])
def test_a_file_that_is_not_there_is_named(command, tmp_path, capsys):
    assert main([command, "--site", str(tmp_path / "no.yaml")]) == cli.USER_MUST_MEND
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["metrics", "--port", "70000"], ["metrics", "--port", "-1"], ["audit", "--last", "0"]]
)
def test_a_number_that_is_none_of_its_kind_is_the_users_to_mend(site_file, capsys, options):
    assert main([*options, "--site", str(site_file)]) == cli.USER_MUST_MEND
    assert f"{options[1]} {options[2]}: not a" in capsys.readouterr().err
