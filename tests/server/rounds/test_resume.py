"""Promise 2: killed after any round, or amid one, and resumed: the same final weights as without the kill."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

from dusss_core import files
from dusss_core.errors import UserError
from server.runs import runfolder
from server.runs.events import PlainReporter, Reporter
from server.simulation.simulate import simulate
from tests.server.conftest import finals, make_study

FEDADAM = {"federation": {"strategy": "fedadam", "server_lr": 0.3}}
FEDBN = {"local_norm": True}
FALLING = {"study": "falling", "segment__rounds": 9, "segment__patience": 2}
"""The first round's model is best, and patience ends the phase after the fourth."""


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a kill."""


class Killer(Reporter):
    """Raises at the `at`-th call of `event`."""

    def __init__(self, event: str, at: int):
        self._left = at
        setattr(self, event, self._count)

    def _count(self, *_):
        self._left -= 1
        if self._left == 0:
            raise Killed


MOMENTS = [
    ("on_round_end", 1),
    ("on_round_end", 2),
    ("on_round_end", 3),
    ("on_round_end", 4),
    # after one or both sites have trained, before the round is saved
    ("on_site_done", 2),
    ("on_site_start", 4),
    ("on_site_done", 10),
    ("on_phase_end", 1),
    ("on_phase_end", 2),
]
CASES = [
    *(pytest.param({}, *moment, id=f"fedavg-{moment[0]}-{moment[1]}") for moment in MOMENTS),
    *(pytest.param(FEDADAM, *moment, id=f"fedadam-{moment[0]}-{moment[1]}") for moment in MOMENTS[0:6:2]),
    *(pytest.param(FEDBN, *moment, id=f"fedbn-{moment[0]}-{moment[1]}") for moment in MOMENTS[1:6:2]),
    *(pytest.param(FALLING, "on_round_end", at, id=f"patience-on_round_end-{at}") for at in (5, 6)),
]


@pytest.mark.parametrize(("changes", "event", "at"), CASES)
def test_a_killed_run_resumes_to_the_same_bytes(fake, quiet, tmp_path, changes, event, at, whole):
    study = make_study(**changes)
    with pytest.raises(Killed):
        simulate(study, tmp_path, reporter=Killer(event, at))
    fake.forget()  # a new process has no workbench
    simulate(study, tmp_path, reporter=quiet, resume=True)
    assert finals(tmp_path) == whole(changes)[0]
    assert _rounds(tmp_path) == whole(changes)[1]


def test_a_process_that_died_resumes_to_the_same_bytes(fake, quiet, tmp_path, whole):
    command = [sys.executable, "-m", "tests.server.killed_run", str(tmp_path), "3"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert told.splitlines()[-2:] == ["9 False", "0 True"]
    assert finals(tmp_path) == whole({})[0]


def test_keeping_workbenches_between_messages_changes_no_bit(fake, quiet, tmp_path, whole, monkeypatch):
    import client.work.workbench

    monkeypatch.setattr(client.work.workbench, "workbench", client.work.workbench.Workbench)
    simulate(make_study(), tmp_path, reporter=quiet)
    assert finals(tmp_path) == whole({})[0]


def test_a_finished_study_is_left_alone(fake, tmp_path):
    heard = []

    class Listener(Reporter):
        def on_message(self, text):
            heard.append(text)

    study = make_study()
    simulate(study, tmp_path, reporter=Listener())
    before = (tmp_path / "summary.json").read_bytes()
    simulate(study, tmp_path, reporter=Listener(), resume=True)
    assert (tmp_path / "summary.json").read_bytes() == before
    assert "finished" in heard[-1]


def test_a_folder_that_holds_a_run_is_not_overwritten(fake, quiet, tmp_path):
    study = make_study()
    simulate(study, tmp_path, reporter=quiet)
    with pytest.raises(UserError, match=r"--resume.*--force"):
        simulate(study, tmp_path, reporter=quiet)
    key = json.loads((tmp_path / "run.json").read_text())["run_key"]
    simulate(study, tmp_path, reporter=quiet, force=True)
    assert json.loads((tmp_path / "run.json").read_text())["run_key"] != key


def test_changed_settings_are_refused_by_name_on_resume(fake, quiet, tmp_path):
    with pytest.raises(Killed):
        simulate(make_study(), tmp_path, reporter=Killer("on_round_end", 1))
    with pytest.raises(UserError, match=r"student\.width.*"):
        simulate(make_study(student__width=8, seed=2), tmp_path, reporter=quiet, resume=True)
    with pytest.raises(UserError, match="seed"):
        simulate(make_study(seed=2), tmp_path, reporter=quiet, resume=True)


def test_a_run_of_a_release_with_other_settings_is_refused_as_it_is(fake, quiet, tmp_path, monkeypatch):
    simulate(make_study(), tmp_path, reporter=quiet)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(runfolder, "study_digest", lambda study: "that of another release")
    with pytest.raises(UserError, match="a release with other settings to choose"):
        simulate(make_study(), tmp_path, reporter=quiet, resume=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_rounds_may_be_extended_on_resume_but_not_cut(fake, quiet, tmp_path):
    simulate(make_study(), tmp_path, reporter=quiet)
    with pytest.raises(UserError, match=r"segment\.rounds was 2 and is now 1"):
        simulate(make_study(segment__rounds=1), tmp_path, reporter=quiet, resume=True)
    summary = simulate(make_study(segment__rounds=4), tmp_path, reporter=quiet, resume=True)
    assert summary["rounds"]["segment"]["trained"] == 4
    assert summary["rounds"]["pretrain"]["trained"] == 2
    with pytest.raises(UserError, match=r"pretrain\.rounds"):
        simulate(make_study(segment__rounds=4, pretrain__rounds=3), tmp_path, reporter=quiet, resume=True)


def test_a_full_disk_while_checkpointing_leaves_the_checkpoint_before(fake, quiet, tmp_path, monkeypatch, whole):
    study, write, checkpoints = make_study(), files._write_all, set()

    def full(file, piece):
        if "checkpoints" in file.name:
            checkpoints.add(file.name)
            if len(checkpoints) == 2:
                file.write(b"half a file")
                raise OSError(errno.ENOSPC, "No space left on device")
        write(file, piece)

    monkeypatch.setattr(files, "_write_all", full)
    with pytest.raises(UserError, match=r"No space left on device.*\n.*free disk space"):
        simulate(study, tmp_path, reporter=quiet)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["pretrain-0001.safetensors"]
    monkeypatch.setattr(files, "_write_all", write)
    simulate(study, tmp_path, reporter=quiet, resume=True)
    assert finals(tmp_path) == whole({})[0]


def test_resuming_where_nothing_was_trained_starts_afresh(fake, quiet, tmp_path, whole):
    simulate(make_study(), tmp_path, reporter=quiet, resume=True)
    assert finals(tmp_path) == whole({})[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The final models, and the rounds in metrics.jsonl, of runs that nobody disturbed."""
    known = {}

    def run(changes):
        key = json.dumps(changes)
        if key not in known:
            out = tmp_path_factory.mktemp("whole")
            simulate(make_study(**changes), out, reporter=Reporter())
            known[key] = finals(out), _rounds(out)
        return known[key]

    return run


def _rounds(out):
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["phase"], line["round"], line["site"], line.get("train"), line.get("val")) for line in lines]


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("lost", "told"),
    [
        (["run.json"], "its run.json is not there"),
        (["checkpoints"], "its checkpoints are not there"),
        (["run.json", "checkpoints"], "its run.json is not there"),
    ],
)
def test_a_run_that_lost_what_it_could_go_on_with_is_not_deleted_without_force(
    fake, quiet, tmp_path, lost, told, resume
):
    simulate(make_study(), tmp_path, reporter=quiet)
    for name in lost:
        shutil.rmtree(tmp_path / name) if name == "checkpoints" else (tmp_path / name).unlink()
    before = everything(tmp_path)
    with pytest.raises(UserError, match=f"{told}[^>]*-> put back what is missing"):
        simulate(make_study(), tmp_path, reporter=quiet, resume=resume)
    assert everything(tmp_path) == before
    simulate(make_study(), tmp_path, reporter=quiet, force=True)


@pytest.mark.parametrize("index", [None, "", '{"digest": "0', "[1]", "{}", '{"site_files": 3}'])
def test_private_state_of_simulated_sites_is_not_made_anew_where_their_index_is_damaged(fake, quiet, tmp_path, index):
    with pytest.raises(Killed):
        simulate(make_study(), tmp_path, reporter=Killer("on_round_end", 3))
    file = tmp_path / "sites" / "index.json"
    file.unlink() if index is None else file.write_text(index)
    before = everything(tmp_path / "sites")
    with pytest.raises(UserError, match=r"sites/index\.json: not there, or damaged"):
        simulate(make_study(), tmp_path, reporter=quiet, resume=True)
    assert everything(tmp_path / "sites") == before


def test_a_run_goes_on_without_its_sites_only_where_it_is_finished(fake, quiet, tmp_path):
    with pytest.raises(Killed):
        simulate(make_study(), tmp_path / "killed", reporter=Killer("on_round_end", 3))
    shutil.rmtree(tmp_path / "killed" / "sites")
    with pytest.raises(UserError, match=r"sites/index\.json: not there"):
        simulate(make_study(), tmp_path / "killed", reporter=quiet, resume=True)
    simulate(make_study(), tmp_path / "finished", reporter=quiet)
    shutil.rmtree(tmp_path / "finished" / "sites")
    assert simulate(make_study(), tmp_path / "finished", reporter=quiet, resume=True, compare_with="local")["compare"]


def test_damaged_lines_of_heads_are_passed_over_and_kept(fake, quiet, tmp_path):
    with pytest.raises(Killed):
        simulate(make_study(), tmp_path, reporter=Killer("on_round_end", 3))
    heads = tmp_path / "audit_heads.jsonl"
    damaged = heads.read_bytes().replace(b'"site": "alder"', b'"site": "al\x8aer"', 1)
    heads.write_bytes(damaged)
    simulate(make_study(), tmp_path, reporter=quiet, resume=True)
    assert heads.read_bytes().startswith(damaged)


def test_a_study_whose_output_nobody_reads_any_more_goes_on_to_its_end(fake, tmp_path):
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as stream:
        summary = simulate(make_study(), tmp_path, reporter=PlainReporter(stream))
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert '"event": "end", "args": [0' in (tmp_path / "events.jsonl").read_text()


@pytest.mark.parametrize(("name", "at"), [("segment-0002", 4), ("pretrain-0002", 2)])
@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b.replace(b'"totals"', b'"totalz"'),
        lambda b: b[:-3] + bytes([b[-3] ^ 0x40]) + b[-2:],
        lambda b: b.replace(b'"bytes_up\\": ', b'"bytes_up\\":1', 1),
    ],
    ids=["cut off", "a name changed", "a number of a tensor changed", "a total changed"],
)
def test_a_damaged_checkpoint_is_told_by_name_and_its_remedy_leads_to_the_same_bytes(
    fake, quiet, tmp_path, whole, name, at, damage
):
    with pytest.raises(Killed):
        simulate(make_study(), tmp_path, reporter=Killer("on_round_end", at))
    path = tmp_path / "checkpoints" / f"{name}.safetensors"
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=rf"{name}.safetensors: [^>]*-> put it back from a backup; or move it away"):
        simulate(make_study(), tmp_path, reporter=quiet, resume=True)
    assert path.read_bytes() == damaged
    path.rename(tmp_path / "damaged")
    simulate(make_study(), tmp_path, reporter=quiet, resume=True)
    assert (finals(tmp_path), _rounds(tmp_path)) == whole({})


def test_a_damaged_vision_language_model_is_not_said_to_be_made_anew(fake, quiet, tmp_path):
    with pytest.raises(Killed):
        simulate(make_study(), tmp_path, reporter=Killer("on_round_end", 3))
    (tmp_path / "checkpoints" / "vlm.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"vlm.safetensors: [^>]*-> put it back from a backup; or start afresh"):
        simulate(make_study(), tmp_path, reporter=quiet, resume=True)
