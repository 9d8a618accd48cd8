"""What a run on disk remembers, and what it forgets when rounds are trained again."""

from __future__ import annotations

import fcntl
import json
import threading

import pytest
import torch

from dusss_core.errors import UserError
from dusss_core.phases import Phase
from server.runs.checkpoints import Checkpoint
from server.runs.eventlog import FILE, EventLog
from server.runs.runfiles import read_run
from server.runs.runfolder import Busy, alone, log, open_run, read_study
from tests.server.conftest import make_study


def test_lines_of_rounds_that_are_trained_again_are_dropped_and_no_others(tmp_path):
    run = open_run(tmp_path / "run", make_study())
    done = [("pretrain", 1), ("pretrain", 2), ("pretrain", 3), ("segment", 1)]
    run.outputs.add([{"phase": phase, "round": round, "site": "alder"} for phase, round in done])
    run.outputs.drop_after(Phase.PRETRAIN, 2)
    lines = [json.loads(text) for text in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["round"]) for line in lines] == done[:2]


def test_a_line_of_figures_that_cannot_be_read_is_told_of_where_a_run_goes_on(tmp_path):
    run, heard = open_run(tmp_path / "run", make_study()), []
    run.outputs.tell = heard.append
    run.outputs.add([{"phase": "pretrain", "round": round, "site": "alder"} for round in (1, 2, 3)])
    path = run.folder / "metrics.jsonl"
    run.outputs.drop_after(Phase.PRETRAIN, 3)
    path.write_text(path.read_text() + '{"phase": "pret')  # what a crash cuts off is trained again
    run.outputs.drop_after(Phase.PRETRAIN, 3)
    assert heard == []
    path.write_text(path.read_text().replace('"round": 2', '"round" 2'))
    run.outputs.drop_after(Phase.PRETRAIN, 3)
    assert [line["round"] for line in run.metrics()] == [1, 3]
    assert len(heard) == 1 and "metrics.jsonl: lines that cannot be read: 1" in heard[0]


def test_a_run_that_ended_before_its_first_round_makes_way_for_itself_and_for_no_other(tmp_path):
    first = open_run(tmp_path, make_study())
    (tmp_path / "log.txt").write_text("why it ended")
    for other in (make_study(seed=2), make_study(study="another")):
        for resume in (False, True):
            with pytest.raises(UserError, match=r"other settings, which ended before its first round.*(seed|study)"):
                open_run(tmp_path, other, resume=resume)
    assert (tmp_path / "log.txt").read_text() == "why it ended"
    mended = make_study(federation__min_sites=1, segment__batch=4)  # what may change on resume
    assert open_run(tmp_path, mended).run_key != first.run_key
    (tmp_path / "config.yaml").write_text("a_key_of_another_release: 1\n")
    with pytest.raises(UserError, match="cannot be read by this release"):
        open_run(tmp_path, make_study())
    open_run(tmp_path, make_study(seed=2), force=True)


def test_half_a_line_at_the_end_of_the_figures_is_skipped_and_written_anew(tmp_path):
    """A crash cuts off the line of a round; the round is trained again after a resume."""
    run = open_run(tmp_path / "run", make_study())
    run.outputs.add([{"phase": "pretrain", "round": round, "site": "alder", "accepted": True} for round in (1, 2)])
    path = run.folder / "metrics.jsonl"
    path.write_text(path.read_text()[:-20], encoding="utf-8")
    assert [line["round"] for line in run.metrics()] == [1]
    assert [line["round"] for line in read_run(run.folder).rounds] == [1]
    run.outputs.drop_after(Phase.PRETRAIN, 1)
    run.outputs.add([{"phase": "pretrain", "round": 2, "site": "alder", "accepted": True}])
    assert [line["round"] for line in run.metrics()] == [1, 2]


def test_the_log_and_the_events_of_a_run_are_only_added_to(tmp_path):
    run, written = open_run(tmp_path / "run", make_study()), 3 * 10**6
    for _ in range(2):
        with run.logging():
            log.info("x" * written)
        events = EventLog(run.folder)
        events.begin(1)
        events.write("on_message", "x" * written)
    assert (run.folder / "log.txt").stat().st_size > 2 * written
    assert (run.folder / FILE).stat().st_size > 2 * written
    assert not [path for path in run.folder.iterdir() if path.name.startswith((f"{FILE}.", "log.txt."))]


def test_a_page_that_follows_a_run_keeps_nobody_from_going_on_with_it(tmp_path):
    """It holds the lock, with others that look, for as long as it takes to see that nobody works on the run."""
    with alone(tmp_path):
        pass
    with (tmp_path / ".lock").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.1, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with alone(tmp_path):
            pass
    with alone(tmp_path), pytest.raises(Busy), alone(tmp_path):
        pass


def test_a_run_in_a_folder_that_is_another_accounts_is_the_users_to_mend(tmp_path):
    (tmp_path / ".lock").mkdir()  # not to be opened for writing, not by root either
    with pytest.raises(UserError, match="cannot be written to") as error, alone(tmp_path):
        pass
    assert "account that owns it" in error.value.remedy


def test_a_run_goes_on_without_what_a_killed_coordinator_left_half_written(tmp_path):
    run = open_run(tmp_path, make_study())
    run.checkpoints.save_round(Checkpoint(Phase.SEGMENT, 1, {"weight": torch.zeros(2)}), 3, None)
    left = run.folder / "checkpoints" / f".segment-000002.safetensors.{2**22 + 1}.tmp"
    left.write_bytes(b"half")
    assert open_run(tmp_path, make_study(), resume=True).resumed
    assert not left.exists()


@pytest.mark.parametrize("text", ['{"run_key": "ab', "[1]", "{}", '{"run_key": 1}', '{"run_key": "ab", "members": 1}'])
def test_a_damaged_run_is_told_by_its_file_and_left_as_it_is(tmp_path, text):
    run = open_run(tmp_path, make_study())
    run.checkpoints.save_round(Checkpoint(Phase.PRETRAIN, 1, {"weight": torch.zeros(2)}), 3, None)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json: cannot be read"):
        open_run(tmp_path, make_study(), resume=True)
    with pytest.raises(UserError, match=r"run\.json: cannot be read"):
        read_study(tmp_path)
    assert (tmp_path / "run.json").read_text() == text
