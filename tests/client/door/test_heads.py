"""Whoever can write to a site's disk cannot cut its audit log in silence: its head is also where he cannot write."""

from __future__ import annotations

import json

import pytest
from flwr.app import ConfigRecord, RecordDict

from client.__main__ import main
from client.answer import answer
from client.door.audit import record, verify
from client.state import chain
from tests.client.conftest import declined, make_content
from tests.server.conftest import make_study
from tests.server.rounds.test_replies import message


@pytest.fixture
def state(fake, site_file):
    return site_file.parent / "state"


def ask(site_file, kind="train", **config):
    return answer(
        kind, make_content(study=make_study(method={"preset": "mean_teacher"}).training(), **config), site_file
    )


def head_of(reply):
    return reply["config"]["audit_head"]


def begin_anew(state, *events):
    """What an owner can do: a log with other lines, and a head that fits."""
    (state / "audit.jsonl").unlink()
    (state / "audit.head").unlink()
    for event in events:
        record(state, event)


def test_a_log_cut_to_one_line_without_its_head_is_found(tmp_path):
    for number in range(4):
        record(tmp_path, "made", number=number)
    log = tmp_path / "audit.jsonl"
    log.write_bytes(log.read_bytes().split(b"\n")[0] + b"\n")
    (tmp_path / "audit.head").unlink()
    verdict = verify(log)
    assert verdict.broken == 2 and "no audit.head" in verdict.problem
    record(tmp_path, "made", number=9)
    assert verify(log).broken == 2, "and stays so when lines are added"


def test_an_answer_carries_the_hash_of_the_logs_last_line(state, site_file):
    for kind, what in (("train", "train"), ("query", "train"), ("evaluate", "test")):
        assert head_of(ask(site_file, kind, what=what)) == verify(state / "audit.jsonl").last
    reply = ask(site_file, round=10**6)
    assert declined(reply) and head_of(reply) == verify(state / "audit.jsonl").last


def test_a_log_that_was_begun_anew_is_found_by_the_head_that_comes_back(state, site_file):
    head = head_of(ask(site_file))
    ask(site_file, round=2, audit_head=head)
    assert verify(state / "audit.jsonl").broken is None
    begin_anew(state, "client started")
    assert verify(state / "audit.jsonl").broken is None, "by itself it cannot be told"
    assert declined(ask(site_file, round=3, audit_head=head)) is None
    verdict = verify(state / "audit.jsonl")
    assert verdict.broken and "the coordinator has kept a head that no line here has" in verdict.problem


def test_a_line_that_a_crash_has_cut_swallows_no_head(tmp_path):
    from server.rounds.heads import Heads

    path = tmp_path / "audit_heads.jsonl"
    path.write_text(json.dumps({"site": "birch", "head": "aa" * 32}) + '\n{"site": "birch", "he')
    reply = message(RecordDict({"config": ConfigRecord({"audit_head": "bb" * 32})}))
    Heads(path).note("birch", reply, {})
    assert Heads(path).seen("birch") == {"audit_head": "bb" * 32}


def test_a_head_that_is_missing_is_noted_once(state, site_file):
    for round in (1, 2, 3):
        ask(site_file, round=round, audit_head="ab" * 32)
    events = [entry["event"] for entry in chain.entries(state / "audit.jsonl")]
    assert events.count(chain.DAMAGED) == 1


def test_a_log_that_was_begun_anew_is_found_by_a_head_that_a_person_brings(state, site_file, capsys):
    head = head_of(ask(site_file))
    ask(site_file, "query")
    arguments = ["audit", "--site", str(site_file), "--holds", head]
    assert main(arguments) == 0
    begin_anew(state, "client started", "message", "answer")
    assert main(["audit", "--site", str(site_file)]) == 0
    assert main(arguments) == 1
    assert head[:12] in capsys.readouterr().out.replace("\n", "")


def test_a_head_that_is_none_accuses_nobody(state, site_file, capsys):
    ask(site_file, "query")
    for head in ("zz", "", "a" * 63, "G" * 64):
        assert main(["audit", "--site", str(site_file), "--holds", head]) == 2
        told = capsys.readouterr()
        assert "no head of a log" in told.err and "who changed it" not in told.out


def test_a_site_that_pays_for_what_leaves_sends_no_head(private, site_file):
    private.site(site_file)
    for kind in ("query", "train", "evaluate"):
        reply = ask(site_file, kind, what="test" if kind == "evaluate" else "train")
        assert "audit_head" not in (reply.config_records.get("config") or {})


def test_the_head_of_each_answer_is_in_the_runs_record_and_goes_back(fake, tmp_path, monkeypatch):
    from client.door import entrance
    from server.runs.events import Reporter
    from server.simulation.simulate import simulate

    seen, read = [], entrance.read

    def noted(kind, content):
        request = read(kind, content)
        seen.append(request.audit_head)
        return request

    monkeypatch.setattr(entrance, "read", noted)
    simulate(make_study(method={"preset": "mean_teacher"}), tmp_path, reporter=Reporter())
    lines = [json.loads(line) for line in (tmp_path / "audit_heads.jsonl").read_text().splitlines()]
    assert {(line["site"], line["kind"]) for line in lines} >= {("alder", "train"), ("birch", "evaluate")}
    kept = {line["head"] for line in lines}
    assert len(kept) == len(lines) and len([head for head in seen if head in kept]) >= len(lines) - 2
    for site in ("alder", "birch"):
        log = tmp_path / "sites" / site / "state" / "audit.jsonl"
        assert verify(log).broken is None
        assert all(chain.holds(log, line["head"]) for line in lines if line["site"] == site)
