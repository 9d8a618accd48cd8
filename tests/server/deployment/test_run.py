"""`python -m server run` against a SuperLink that is played; the real one: slow tests."""

from __future__ import annotations

import re
import shlex
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from dusss_core.files import exclusive
from server.__main__ import main
from server.deployment import run
from server.deployment.control import FlowerRun
from server.deployment.templates import render
from server.runs.eventlog import EventLog
from server.study.config import load_study
from tests.server.conftest import make_study
from tests.server.deployment.played import ROUND, server_app


def test_what_the_server_app_tells_is_shown_and_its_end_is_the_exit_code(link, study_file, tmp_path, capsys):
    link.do = server_app(*ROUND)
    assert main(["run", str(study_file), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "birch: not in this round: no answer in time" in shown
    assert "segment   1: loss 0.5000  val loss 0.7000  Dice 0.1000  2.0 s" in shown


@pytest.mark.parametrize(
    ("code", "text", "shown"),
    [(2, "too few sites\n  -> start them", "error: too few sites"), (1, "a round failed", "failed: a round failed")],
)
def test_a_study_that_ends_badly_says_why_and_how_to_go_on(link, study_file, tmp_path, capsys, code, text, shown):
    link.do, link.ends_as = server_app(code=code, text=text), "failed"
    assert main(["run", str(study_file), "--out", str(tmp_path / "out")]) == code
    told = capsys.readouterr().out
    assert shown in told and (code == 2 or "--resume" in told)


def test_a_server_app_that_dies_without_a_word_is_a_failure(link, study_file, tmp_path, capsys):
    link.do, link.ends_as = lambda out, number: EventLog(out).begin(number), "failed"
    assert main(["run", str(study_file), "--out", str(tmp_path / "out")]) == 1
    assert "failed: told" in (shown := capsys.readouterr().out) and "--resume" in shown


def test_what_flower_alone_kept_of_an_error_still_gives_its_exit_code(link, study_file, tmp_path, capsys):
    link.do, link.ends_as = lambda out, number: EventLog(out).begin(number), "failed"
    link.told = "ServerApp failed with exception: the disk is full\n  -> free disk space"
    assert main(["run", str(study_file), "--out", str(tmp_path / "out")]) == 2
    assert "the disk is full" in capsys.readouterr().out


def test_a_superlink_that_stays_away_ends_the_looking_on(link, study_file, tmp_path, capsys):
    link.ends_as, link.away = "", True
    assert main(["run", str(study_file), "--out", str(tmp_path / "out")]) == 1
    assert "is gone: start it again" in capsys.readouterr().out


def test_ctrl_c_leaves_the_study_and_says_how_to_come_back(link, study_file, tmp_path, capsys, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    link.ends_as = ""
    monkeypatch.setattr(run.time, "sleep", interrupted)
    assert main(["run", str(study_file), "--out", str(tmp_path / "out")]) == 130
    shown = capsys.readouterr().out
    assert (
        f"python -m server status {tmp_path / 'out'} --follow" in shown and f"server stop {tmp_path / 'out'}" in shown
    )
    assert link.stopped == []


def test_the_study_that_was_checked_is_the_one_that_is_run(link, study_file, tmp_path, monkeypatch):
    link.do = server_app()
    monkeypatch.chdir(tmp_path)
    main(["run", str(study_file), "--set", "segment.rounds=7", "--set", "data.root=my data"])
    (settings,) = link.started
    assert settings["out"] == str(tmp_path / "runs" / "tiny") and Path(settings["study"]).is_absolute()
    submitted = load_study(settings["study"])
    assert submitted.segment.rounds == 7 and submitted.data.root == str(tmp_path / "my data")


def test_a_run_that_is_there_needs_resume_or_force(link, study_file, tmp_path, fake, quiet):
    from server.simulation.simulate import simulate

    out = tmp_path / "out"
    simulate(make_study(data={"root": str(tmp_path)}), out, reporter=quiet)
    arguments = ["run", str(study_file), "--out", str(out), "--set", f"data.root={tmp_path}"]
    link.do = server_app()
    assert main(arguments) == 2 and link.started == []
    assert main([*arguments, "--resume"]) == 0
    assert main([*arguments, "--resume", "--set", "seed=5"]) == 2
    assert (out / "checkpoints" / "student.safetensors").is_file()
    assert main([*arguments, "--force"]) == 0
    assert not (out / "checkpoints" / "student.safetensors").exists()


def test_a_run_that_died_unseen_is_put_away_and_one_that_lives_is_left_alone(link, study_file, tmp_path, capsys):
    link.do, link.ends_as = lambda out, number: None, ""
    out = (tmp_path / "out").absolute()
    link.known[1] = FlowerRun(1, "running", "", "", out, "2026-01-01T10:00:00+00:00")
    out.mkdir()
    with exclusive(out / ".lock"):
        assert main(["run", str(study_file), "--out", str(out), "--resume"]) == 2
    assert "a study is running there" in capsys.readouterr().err
    assert link.stopped == [] and link.started == []
    link.do, link.ends_as = server_app(), "completed"
    assert main(["run", str(study_file), "--out", str(out), "--resume"]) == 0
    assert link.stopped == [1]


def test_a_run_that_was_just_stopped_is_waited_for(link, study_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "_FREE_S", 20.0)
    link.do = server_app()
    out = (tmp_path / "out").absolute()
    out.mkdir()
    link.known[1] = FlowerRun(1, "finished", "stopped", "", out, "2026-01-01T10:00:00+00:00")
    with ExitStack() as dying:
        dying.enter_context(exclusive(out / ".lock"))
        threading.Timer(0.5, dying.close).start()
        assert main(["run", str(study_file), "--out", str(out), "--resume"]) == 0
    assert "waiting for its end" in capsys.readouterr().out and len(link.started) == 1


def test_a_folder_where_another_process_works_is_refused_at_once(link, study_file, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_FREE_S", 60.0)
    out = tmp_path / "out"
    out.mkdir()
    with exclusive(out / ".lock"):
        assert main(["run", str(study_file), "--out", str(out)]) == 2
    assert link.started == []


def test_a_study_that_has_just_ended_well_is_not_called_dead_nor_stopped(
    link, study_file, tmp_path, capsys, monkeypatch
):
    out = (tmp_path / "out").absolute()
    link.do, link.ends_as = server_app(*ROUND), ""
    command = ["run", str(study_file), "--out", str(out), "--resume"]
    assert main(command) == 0
    asked, ask = [], link.run

    def run_of_flower(number):
        asked.append(number)
        if len(asked) == 3:  # it hears of the end late
            link.known[1] = replace(link.known[1], status="finished", outcome="completed")
        return ask(number)

    link.run = run_of_flower
    monkeypatch.setattr(run, "_FREE_S", 20.0)
    assert main(command) == 0
    assert link.stopped == [] and "had died" not in capsys.readouterr().out
    assert link.known[1].outcome == "completed"


@pytest.mark.parametrize(("ends_as", "begun_anew"), [("stopped", False), ("failed", True)])
def test_a_service_does_not_begin_anew_what_a_person_has_stopped(link, study_file, tmp_path, ends_as, begun_anew):
    link.do, link.ends_as = lambda out, run_id: None, ends_as
    unit = render(
        "feddusss-study.service.j2", study="s", folder="/f", study_file="/s", programs="/p", user="u", home="/h"
    )
    [left_alone] = re.findall(r"^RestartPreventExitStatus=(\d+)$", unit, flags=re.M)
    assert "Restart=on-failure" in unit
    code = main(["run", str(study_file), "--out", str(tmp_path / "out"), "--resume"])
    assert (code not in (0, int(left_alone))) == begun_anew


def test_the_command_that_every_hint_prints_goes_on_with_a_run_that_had_settings_of_its_own(
    link, study_file, tmp_path, capsys, fake, quiet
):
    from server.simulation.simulate import simulate

    out = (tmp_path / "out").absolute()
    other = {"seed": 5, "data": {"root": str(tmp_path)}}
    simulate(make_study(**other), out, reporter=quiet)
    link.known[7] = FlowerRun(7, "running", "", "", out, "2026-01-01T10:00:00+00:00")
    assert main(["stop", "7"]) == 0
    hint = capsys.readouterr().out.partition("go on with it: ")[2].split()
    assert hint[:3] == ["python", "-m", "server"] and f"{out}/config.yaml" in hint
    link.known.clear()
    link.do = server_app()
    assert main(["run", str(study_file), "--out", str(out), "--resume", "--set", f"data.root={tmp_path}"]) == 2
    assert f"give {out}/config.yaml" in capsys.readouterr().err
    assert main(hint[3:]) == 0
    assert load_study(link.started[0]["study"]).seed == 5
    # the same command where a run fails, before anything of it is on the disk
    fresh = tmp_path / "a fresh one"
    link.do, link.ends_as = lambda out, number: EventLog(out).begin(number), "failed"
    assert main(["run", str(study_file), "--out", str(fresh), "--set", "seed=6"]) == 1
    hint = shlex.split(capsys.readouterr().out.partition("its last round: ")[2])
    link.do, link.ends_as = server_app(), "completed"
    assert main(hint[3:]) == 0
    assert load_study(link.started[-1]["study"]).seed == 6


def test_a_superlink_that_does_not_run_is_the_users_to_start(tmp_path, study_file, capsys):
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text(
        '[superlink]\ndefault = "a"\n[superlink.a]\naddress = "127.0.0.1:1"\ninsecure = true\n'
    )
    assert main(["run", str(study_file), "--out", str(tmp_path / "out"), "--coordinator", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "does not answer" in told and str(tmp_path / "start.sh") in told
