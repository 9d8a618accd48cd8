"""events.jsonl: what a run tells, and how it is followed."""

from __future__ import annotations

import json

from server.runs.eventlog import EventLog, Tail, progress_of
from tests.server.unreliable import Listener


def test_a_run_in_another_folder_is_told_from_ours_in_one_log(tmp_path):
    log = EventLog(tmp_path)
    log.begin(1)
    log.on_phase("pretrain", 5, 1)
    log.end(1, "failed")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"at": 1, "event": "on_pha')  # cut off by a crash
    log.begin(2)
    progress = progress_of(tmp_path)
    assert (progress.run_id, progress.phase, progress.code) == (2, "", None)


def test_a_tail_reads_whole_lines_only_and_each_once(tmp_path):
    tail, path = Tail(tmp_path), tmp_path / "events.jsonl"
    assert list(tail.read()) == []
    line = json.dumps({"at": 1.0, "event": "begin", "args": [1]})
    path.write_text(line + "\n" + line[:10])
    assert [event["args"] for event in tail.read()] == [[1]]
    with path.open("a") as file:
        file.write(line[10:] + "\nnot json\n" + json.dumps(["a list"]) + "\n")
    assert [event["args"] for event in tail.read()] == [[1]]
    assert list(tail.read()) == []


def test_an_event_log_on_a_full_disk_does_not_stop_the_study(tmp_path):
    listener = Listener()
    log = EventLog(tmp_path / "missing", also=listener)
    log.on_message("hello")
    assert listener.messages == ["hello"]
