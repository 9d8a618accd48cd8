"""python -m server watch: what the page says of a run, who gets an answer, and a real browser that follows it."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import struct
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from dusss_core.errors import UserError
from dusss_core.files import exclusive
from server.__main__ import main
from server.report import live
from server.report.live import Live
from server.report.page import write_report
from server.report.watch import start
from server.runs.eventlog import EventLog
from server.runs.steps import FILE, StepsFile, read_steps
from server.simulation.simulate import simulate
from tests.server.conftest import make_study
from tests.server.fake_run import SITES, summary, write_run
from tests.server.report import browser


@contextmanager
def served(folder: Path):
    """The port of a watch on `folder`."""
    server = start(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(port: int, path: str = "/", method: str = "GET", host: str | None = None):
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


def begin(folder: Path, until: int = 3) -> EventLog:
    """A run in the middle of its segment phase, as its events and files tell it."""
    write_run(folder, finished=False, until=until)
    log = EventLog(folder)
    log.begin(0)
    log.on_study("demo", list(SITES), {"pretrain": 6, "segment": 10})
    log.on_phase("segment", 10, 1)
    for round in range(1, until):
        log.on_round_start("segment", round, 10, list(SITES))
        log.on_round_end("segment", round, {}, None)
    log.on_round_start("segment", until, 10, list(SITES))
    log.on_site_done("alder", {})
    log.on_site_refused("birch", "not <b>connected</b>")
    return log


def finish(folder: Path, log: EventLog) -> None:
    (folder / "summary.json").write_text(json.dumps(summary(SITES)))
    write_report(folder)
    log.end(0)


def test_it_shows_phase_round_sites_curves_and_the_time_left(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    write_run(tmp_path, finished=False, until=3)
    log = EventLog(tmp_path)
    log.begin(0)
    log.on_study("demo", list(SITES), {"segment": 10})
    log.on_phase("segment", 10, 1)
    for round in (1, 2, 3):
        log.on_round_start("segment", round, 10, list(SITES))
        now[0] += 20
        log.on_round_end("segment", round, {}, None)
    log.on_round_start("segment", 4, 10, list(SITES))
    log.on_site_refused("birch", "not <b>connected</b>")
    now[0] += 5
    told = Live(tmp_path).now()
    assert "running: segment, round 4 of 10 (trains)" in told["page"]
    assert told["left"] == "about 15 s left in this round · about 2 min 15 s left in this phase"
    assert told["quiet"] == "last heard of 5.0 s ago"
    assert "left out: not &lt;b&gt;connected" in told["page"] and "segment 3" in told["page"]
    assert told["page"].count("<svg") >= 4 and "Validation Dice" in told["page"]


def test_a_simulation_shows_the_steps_of_the_round_and_the_time_left_in_its_first_one(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    log = EventLog(tmp_path)
    log.begin(0)
    log.on_study("demo", list(SITES), {"segment": 10})
    log.on_phase("segment", 10, 1)
    log.on_round_start("segment", 1, 10, list(SITES))
    followed = Live(tmp_path)
    assert followed.now()["sites"] == {} and followed.now()["left"] == ""
    log.on_site_start("alder")
    for step in range(1, 21):
        now[0] += 1
        log.on_site_step("alder", step, 40, 0.5)
    told = followed.now()
    assert told["sites"] == {"alder": {"text": "step 20 of 40, about 20 s left", "share": 0.5}}
    assert told["left"] == "about 1 min 40 s left in this round"  # 20 of 120 steps in 20 s
    now[0] += 5
    assert followed.now()["sites"]["alder"]["text"] == "step 20 of 40, about 15 s left"
    log.on_site_done("alder", {})
    log.on_site_start("birch")
    log.on_site_step("birch", 1, 40, 0.5)
    told = followed.now()
    assert told["sites"]["alder"] == {"text": "answered after 25 s", "share": None}
    assert told["sites"]["birch"] == {"text": "step 1 of 40", "share": 0.025} and "cedar" not in told["sites"]
    assert 'data-site="birch"' in told["page"]
    log.on_round_end("segment", 1, {}, None)
    assert followed.now()["sites"] == {} and not list(tmp_path.glob("*steps*"))


def test_of_hospitals_it_tells_who_is_waited_for_since_when_and_how_long_the_last_answer_took(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(live, "_at_work", lambda folder: True)
    log = EventLog(tmp_path)
    log.begin(4711)
    log.on_study("demo", ["alder", "birch"], {"segment": 10})
    log.on_phase("segment", 10, 1)
    log.on_round_start("segment", 1, 10, ["alder", "birch"])
    now[0] += 30
    since = time.strftime("%H:%M:%S", time.localtime(1000))
    followed = Live(tmp_path)
    assert followed.now()["sites"]["birch"] == {"text": f"waited for 30 s, since {since}", "share": None}
    log.on_site_done("alder", {})
    now[0] += 60
    log.on_site_done("birch", {})
    log.on_round_end("segment", 1, {}, None)
    assert followed.now()["sites"] == {}
    now[0] += 10
    log.on_round_start("segment", 2, 10, ["alder", "birch"])
    log.on_site_refused("alder", "away")
    log.on_site_start("birch")
    now[0] += 65
    since = time.strftime("%H:%M:%S", time.localtime(1100))
    told = followed.now()
    text = f"waited for 1 min 05 s, since {since}; its last answer took 1 min 30 s"
    assert told["sites"] == {"birch": {"text": text, "share": None}}
    assert told["left"].startswith("about 25 s left in this round")
    now[0] += 600  # longer than ever before: for how long, nobody knows
    assert "round" not in followed.now()["left"]
    log.on_site_done("birch", {})
    log.on_round_end("segment", 2, {}, None)
    now[0] += 3600
    log.on_site_start("birch")  # the model is validated, out of any round
    now[0] += 5
    assert followed.now()["sites"]["birch"]["text"].startswith("waited for 5.0 s")
    log.end(0)
    assert followed.now()["sites"] == {}


@pytest.mark.parametrize(
    "damaged",
    ["", "[]", "{", '{"phase": "segment", "round": 3, "sites": {"cedar": [9, 3, 0, 1, 0]}}', "\0"],
)
def test_steps_that_are_damaged_or_of_another_round_are_none(damaged, tmp_path):
    begin(tmp_path)
    good = {"phase": "segment", "round": 3, "sites": {"cedar": [2, 4, 5.0, 1, 1.0]}}
    (tmp_path / FILE).write_text(json.dumps(good))
    assert read_steps(tmp_path, "segment", 3)["cedar"].step == 2
    assert "step 2 of 4" in Live(tmp_path).now()["sites"]["cedar"]["text"]
    assert read_steps(tmp_path, "segment", 4) == read_steps(tmp_path, "pretrain", 3) == {}
    (tmp_path / FILE).write_text(damaged)
    assert read_steps(tmp_path, "segment", 3) == {} and "cedar" not in Live(tmp_path).now()["sites"]


def test_steps_are_written_once_a_second_and_never_waited_for(tmp_path, monkeypatch):
    now, written = [1000.0], []
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(StepsFile, "_write", lambda self: written.append(now[0]))
    steps = StepsFile(tmp_path)
    steps.begin_round("segment", 1)
    for step in range(1, 101):
        steps.made("alder", step, 100)
        now[0] += 0.1
    assert 10 <= len(written) <= 11
    monkeypatch.undo()
    StepsFile(tmp_path / "gone").made("alder", 1, 2)  # a disk that cannot be written to stops nothing


def test_it_follows_from_the_first_event_to_the_link_to_the_report(tmp_path):
    log = EventLog(tmp_path)
    log.begin(0)
    followed = Live(tmp_path)
    first = followed.now()
    assert "beginning, or waiting for sites" in first["page"]
    log = begin(tmp_path)
    second = followed.now()
    assert "round 3 of 10" in second["page"] and "/report.html" not in second["page"]
    assert followed.now()["version"] == second["version"] != first["version"]
    finish(tmp_path, log)
    last = followed.now()
    assert ">finished<" in last["page"] and 'href="/report.html"' in last["page"]
    assert last["left"] == last["quiet"] == ""


def test_how_a_run_broke_off_is_told(tmp_path, monkeypatch):
    log = begin(tmp_path)
    log.end(2, "the disk is full\n  -> free some")
    assert "stopped by an error" in (page := Live(tmp_path).now()["page"]) and "the disk is full" in page
    log.begin(0)
    log.end(130, "interrupted")
    assert "interrupted; it can go on with --resume" in Live(tmp_path).now()["page"]
    log.begin(0)
    monkeypatch.setattr(live, "QUIET_S", 0.0)
    with exclusive(tmp_path / ".lock"):
        assert "without a word" not in Live(tmp_path).now()["page"]
    assert "ended without a word" in Live(tmp_path).now()["page"]


def test_a_run_that_is_begun_afresh_in_the_same_folder_is_followed(tmp_path):
    begin(tmp_path)
    followed = Live(tmp_path)
    followed.now()
    (tmp_path / "events.jsonl").unlink()
    log = EventLog(tmp_path)
    log.begin(0)
    log.on_study("another", ["alder"], {"segment": 2})
    log.on_phase("segment", 2, 1)
    assert "segment, round 1 of 2" in followed.now()["page"]


def test_a_folder_that_is_no_run_a_taken_port_and_no_port_are_told(tmp_path, capsys):
    assert main(["watch", str(tmp_path)]) == 2
    assert "not a folder of a run" in capsys.readouterr().err
    assert main(["watch", str(tmp_path / "missing")]) == 2
    write_run(tmp_path / "run")
    with served(tmp_path / "run") as port:
        assert main(["watch", str(tmp_path / "run"), "--port", str(port)]) == 2
        assert f"port {port} of this machine" in capsys.readouterr().err
    with pytest.raises(UserError, match="--port 70000"):
        start(tmp_path / "run", 70000)


def test_a_run_of_an_older_release_is_shown_from_its_files(tmp_path):
    write_run(tmp_path, finished=False, until=4)
    page = Live(tmp_path).now()["page"]
    assert "older release" in page and "segment round 4 of 10" in page and "segment 4" in page
    write_run(tmp_path)
    assert ">finished<" in Live(tmp_path).now()["page"]


def test_events_and_files_that_are_damaged_end_nothing(tmp_path):
    begin(tmp_path)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write(json.dumps({"at": time.time(), "event": "on_round_start", "args": ["of a later release"]}) + "\n")
    assert "round 3 of 10" in Live(tmp_path).now()["page"]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("not json\n")
    assert "not JSON" in Live(tmp_path).now()["page"]


def test_a_run_that_is_deleted_while_it_is_watched_is_told_and_the_page_lives_on(tmp_path):
    folder = tmp_path / "run"
    begin(folder)
    with served(folder) as port:
        assert ask(port)[0] == 200
        shutil.rmtree(folder)
        status, _, text = ask(port, "/state")
        assert status == 200 and "no longer there" in json.loads(text)["page"]
        assert ask(port, "/report.html")[0] == 404 and ask(port)[0] == 200


def test_only_this_machine_s_own_address_gets_an_answer_and_only_to_read(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "secret.txt").write_text("secret")
    before = sorted(path.name for path in folder.rglob("*"))
    with served(folder) as port:
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.2:{port}"):
            status, _, text = ask(port, host=host)
            assert status == 403 and "demo" not in text, host
        assert ask(port, host=f"localhost:{port}")[0] == 200
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert ask(port, method=method)[0] == 405
        status, headers, text = ask(port, method="HEAD")
        assert (status, text) == (200, "") and int(headers["Content-Length"]) > 1000
        assert "script-src 'self'" in headers["Content-Security-Policy"] and "*" not in str(headers)
        for path in ("/../secret.txt", "/secret.txt", "/config.yaml", "//etc/passwd", "/report.html"):
            assert ask(port, path)[0] == 404, path
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_page_that_is_closed_in_the_middle_of_an_answer_is_no_error(tmp_path, monkeypatch, capfd):
    begin(tmp_path)
    left, now = threading.Event(), Live.now

    def late(self):
        left.wait(20)
        time.sleep(0.1)  # the reset is here
        return now(self)

    monkeypatch.setattr(Live, "now", late)
    with served(tmp_path) as port:
        browser_of_one = socket.create_connection(("127.0.0.1", port))
        browser_of_one.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        browser_of_one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        browser_of_one.close()
        left.set()
        assert ask(port)[0] == 200
    assert capfd.readouterr().err == ""


def test_it_listens_on_loopback_alone(tmp_path):
    server = start(write_run(tmp_path))
    assert server.server_address[0] == "127.0.0.1"
    server.server_close()


@pytest.mark.usefixtures("fake")
def test_a_simulation_tells_what_is_followed_and_a_second_one_begins_anew(tmp_path, quiet):
    simulate(make_study(), tmp_path, reporter=quiet)
    followed = Live(tmp_path)
    assert followed.now()["page"].count("segment 2") == 2 and ">finished<" in followed.now()["page"]
    with pytest.raises(UserError):
        simulate(make_study(federation__min_sites=5), tmp_path, force=True, reporter=quiet)
    assert "stopped by an error" in followed.now()["page"]


@pytest.mark.skipif(not browser.CHROMIUM, reason="no Chromium on this machine")
def test_a_browser_follows_the_run_to_its_end_and_its_console_is_silent(tmp_path, monkeypatch):
    folder, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    log, now, looks = begin(folder), Live.now, []

    def advancing(self):
        told = now(self)
        looks.append(told["version"])
        if len(looks) == 2:  # the page and its first question are answered
            finish(folder, log)
        return told

    monkeypatch.setattr(Live, "now", advancing)
    with served(folder) as port:
        address = f"http://127.0.0.1:{port}/"
        dom, said, asked = browser.run(address, scratch, "--dump-dom", "--virtual-time-budget=9000")
    assert not browser.console(said)
    assert len(looks) >= 3 and looks[0] == looks[1] != looks[2]
    assert ">finished<" in dom and 'href="/report.html"' in dom
    assert {url.split("?")[0] for url in asked} <= {address, f"{address}watch.js", f"{address}state"} and asked


@pytest.mark.skipif(not browser.CHROMIUM, reason="no Chromium on this machine")
def test_a_browser_shows_the_steps_of_the_round(tmp_path):
    folder, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    begin(folder).on_site_step("cedar", 2, 4, 0.5)
    with served(folder) as port:
        dom, said, _ = browser.run(f"http://127.0.0.1:{port}/", scratch, "--dump-dom", "--virtual-time-budget=3000")
    assert not browser.console(said)
    cells = {site: dom.split(f'data-site="{site}">')[1].split("</td>")[0] for site in ("alder", "cedar")}
    assert "<span>step 2 of 4" in cells["cedar"] and "hidden" not in cells["cedar"]
    assert "hidden" in cells["alder"] and "step" not in cells["alder"]
