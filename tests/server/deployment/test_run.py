"""`python -m server run`, `status`, `stop` and `nodes` against a SuperLink that is played; the real one: slow tests."""

from __future__ import annotations

import json
import os
import re
import shlex
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dusss_core.errors import UserError
from dusss_core.files import exclusive
from feddusss import configfile
from server.__main__ import main
from server.deployment import accounts, control, registry, run
from server.deployment.control import FlowerRun, Node, SuperLinkAway, find_connection
from server.deployment.folder import CoordinatorFolder
from server.deployment.templates import render
from server.runs.eventlog import EventLog, Tail, progress_of
from server.study.config import load_study
from tests.client.tls import Authority
from tests.server.conftest import make_study
from tests.server.deployment.test_registry import new_key
from tests.server.unreliable import Listener


class PlayedSuperLink:
    """Starts nothing; `do(settings, run_id)` is what the ServerApp does at once."""

    address = "127.0.0.1:9"

    def __init__(self):
        self.known: dict[int, FlowerRun] = {}
        self.stopped: list[int] = []
        self.started: list[dict] = []
        self.do = lambda out, run_id: None
        self.ends_as = "completed"
        self.told = "told"
        self.away = False

    def start(self, settings):
        number = len(self.known) + 1
        self.started.append(settings)
        out = control.Path(settings["out"])
        self.known[number] = FlowerRun(number, "running", "", "", out, "2026-01-01T10:00:00+00:00")
        self.do(out, number)
        if self.ends_as:
            self.known[number] = FlowerRun(
                number, "finished", self.ends_as, self.told, out, "2026-01-01T10:00:00+00:00"
            )
        return number

    def run(self, number):
        if self.away:
            raise SuperLinkAway("the SuperLink does not answer")
        return self.known[number]

    def runs(self):
        return list(self.known.values())

    def stop(self, number):
        self.stopped.append(number)

    def nodes(self):
        return [
            Node(11, "alder", "online", "2026-01-01T10:00:00+00:00", "SHA256:abc"),
            Node(12, "", "offline", "", ""),
        ]


@pytest.fixture
def link(monkeypatch):
    played = PlayedSuperLink()

    @contextmanager
    def connected(coordinator):
        yield played

    for module in (control, run):
        monkeypatch.setattr(module, "connected", connected)
    for name in ("_POLL_S", "_ASK_S"):
        monkeypatch.setattr(run, name, 0.0)
    for name in ("_AWAY_S", "_FREE_S"):
        monkeypatch.setattr(run, name, 0.05)
    return played


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(configfile.dump(make_study()))
    return path


def server_app(*events, code=0, text=""):
    """A ServerApp that tells `events` and ends."""

    def do(out, run_id):
        log = EventLog(out)
        log.begin(run_id)
        for name, *arguments in events:
            getattr(log, name)(*arguments)
        log.end(code, text)

    return do


ROUND = [
    ("on_study", "tiny", ["alder", "birch"], {"segment": 2}),
    ("on_phase", "segment", 2, 1),
    ("on_round_start", "segment", 1, 2, ["alder", "birch"]),
    ("on_site_start", "alder"),
    ("on_site_done", "alder", {"train.loss": 0.5}),
    ("on_site_refused", "birch", "no answer in time"),
    ("on_round_end", "segment", 1, {"train.loss": 0.5, "val.loss": 0.7, "val.dice": 0.1, "seconds": 2.0}, None),
]


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


def test_a_hint_names_a_coordinators_folder_that_is_not_the_usual_one(link, study_file, tmp_path, capsys):
    out = (tmp_path / "out").absolute()
    link.known[1] = FlowerRun(1, "running", "", "", out, "2026-01-01T10:00:00+00:00")
    assert main(["stop", "1", "--coordinator", "/srv/kits/coordinator"]) == 0
    assert capsys.readouterr().out.endswith("--resume --coordinator /srv/kits/coordinator\n")


def test_status_of_runs_that_failed_or_were_replaced_tells_of_each_its_own(link, study_file, tmp_path, capsys):
    out = tmp_path / "out"
    link.do, link.ends_as = server_app(("on_message", "waiting for sites"), code=2, text="too few sites"), "failed"
    assert main(["run", str(study_file), "--out", str(out)]) == 2
    link.do, link.ends_as = server_app(*ROUND), "completed"
    assert main(["run", str(study_file), "--out", str(out), "--resume"]) == 0
    capsys.readouterr()
    assert main(["status"]) == 0
    _, failed, completed = capsys.readouterr().out.splitlines()
    assert failed.split() == ["1", "tiny", "failed", "-", "-", "-", "-", str(out)]
    assert completed.split()[:4] == ["2", "tiny", "completed", "segment"]
    assert main(["status", "1"]) == 0
    shown = capsys.readouterr().out
    assert "study tiny: before its first round\n" in shown and "ended with code 2: too few sites" in shown
    assert "waiting for sites" not in shown and "waits for sites" not in shown
    assert "--resume" not in shown, "another run has taken its place"


def test_status_says_where_each_run_is(link, study_file, tmp_path, capsys):
    link.do = server_app(*ROUND)
    out = tmp_path / "out"
    main(["run", str(study_file), "--out", str(out)])
    capsys.readouterr()
    assert main(["status"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["run", "study", "state", "phase"]
    assert row.split() == [
        "1", "tiny", "completed", "segment", "1/2", "1", "of", "2",
        "train.loss", "0.5000", "val.loss", "0.7000", "val.dice", "0.1000", str(out),
    ]  # fmt: skip
    assert main(["status", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "birch: left out: no answer in time" in shown and "ended with code 0" in shown
    assert main(["status", "4711"]) == 2
    assert main(["status", "1", "--follow"]) == 0


def test_stop_stops_a_run_by_its_folder_and_refuses_one_that_has_ended(link, study_file, tmp_path, capsys):
    out = (tmp_path / "out").absolute()
    link.known[1] = FlowerRun(1, "finished", "failed", "", out, "2026-01-01T10:00:00+00:00")
    assert main(["stop", "1"]) == 2
    link.known[2] = FlowerRun(2, "running", "", "", out, "2026-01-01T11:00:00+00:00")
    assert main(["stop", str(out)]) == 0
    assert link.stopped == [2] and "--resume" in capsys.readouterr().out


def test_nodes_shows_names_states_and_keys(link, capsys, tmp_path):
    assert main(["nodes", "--coordinator", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[:2] == ["alder", "online"] and shown[1].endswith("SHA256:abc")
    assert shown[2].split()[:3] == ["?", "offline", "never"]


def test_nodes_shows_who_is_missing(link, capsys, tmp_path):
    folder = CoordinatorFolder(tmp_path)
    registry.add_sites(folder, ["alder", "birch", "cedar"])
    registry.add_key(folder, "cedar", new_key())
    registry.revoke(folder, "cedar")
    assert main(["nodes", "--coordinator", str(tmp_path)]) == 0
    rows = [line.split("  ")[0] + ": " + line for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 5, "alder once"
    assert "no key yet" in rows[3] and rows[3].startswith("birch")
    assert "revoked" in rows[4] and rows[4].startswith("cedar")


def test_a_coordinators_file_that_may_not_be_read_is_told_as_that(tmp_path, monkeypatch):
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text("")

    def refused(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(UserError, match="may not read it"):
        find_connection(tmp_path)
    owner, me = accounts.account(), os.geteuid() + 4711
    monkeypatch.setattr(os, "geteuid", lambda: me)
    with pytest.raises(UserError, match=rf"config.toml is {owner}'s\n.*sudo -iu {owner}; .*chown -R {me}: "):
        find_connection(tmp_path)


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


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "no such file"),
        ("[superlink]\n", "names no SuperLink"),
        ("nonsense", "names no SuperLink"),
        ('[superlink]\ndefault = "a"\n[superlink.a]\naddress = "x:1"\n', "no 'root-certificates'"),
    ],
)
def test_a_coordinators_folder_without_a_superlink_is_told(tmp_path, text, problem):
    if text is not None:
        (tmp_path / "flwr").mkdir()
        (tmp_path / "flwr" / "config.toml").write_text(text)
    with pytest.raises(UserError, match=problem):
        find_connection(tmp_path)


def test_a_superlink_that_does_not_run_is_the_users_to_start(tmp_path, study_file, capsys):
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text(
        '[superlink]\ndefault = "a"\n[superlink.a]\naddress = "127.0.0.1:1"\ninsecure = true\n'
    )
    assert main(["run", str(study_file), "--out", str(tmp_path / "out"), "--coordinator", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "does not answer" in told and str(tmp_path / "start.sh") in told


def test_a_hospital_that_was_revoked_or_has_sent_no_key_is_not_told_as_away():
    from server.deployment.watching import Collector, state_of_sites

    key = {"public_key": "k", "fingerprint": "SHA256:abc", "since": "2026-01-01"}
    sites = [
        {"name": "alder", "keys": [{**key, "node_id": 11}]},
        {"name": "birch", "keys": [{**key, "node_id": 12}]},
        {"name": "cedar", "keys": [{**key, "node_id": 13, "wanted": False}]},
        {"name": "elm"},
    ]
    nodes = [Node(11, "alder", "online", "", "SHA256:abc"), Node(12, "birch", "offline", "", "SHA256:abc")]
    told = state_of_sites(nodes, registry.Registry(sites=sites))
    assert {site["site"]: site["state"] for site in told}["cedar"] == "revoked"
    [connected] = Collector(Path())._of_sites(told)
    assert {sample.labels["site"]: sample.value for sample in connected.samples} == {"alder": 1.0, "birch": 0.0}


def test_a_certificate_that_expires_is_told_before_it_has(tmp_path):
    from server.deployment.watching import Collector

    Authority(tmp_path).server_files(["localhost"], ends=10)
    page = {family.name: family.samples[0].value for family in Collector(tmp_path).collect()}
    assert 9 * 86400 < page["feddusss_certificate_seconds_left"] <= 10 * 86400
    (tmp_path / "server.crt").write_text("not one")
    assert "feddusss_certificate_seconds_left" not in {family.name for family in Collector(tmp_path).collect()}
