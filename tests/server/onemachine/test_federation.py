"""`make federation` with all its processes: to the report, and stopped, killed and gone on with in the middle."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fault_lab import fill, small_disk
from dusss_core.files import read_tensors
from server.__main__ import main
from server.onemachine.layout import lay_out
from server.onemachine.prepare import NEEDED_MB, opened, prepare
from server.onemachine.system import marked, name_of, port_is_free
from tests.deployment import ROOT, free_port, wait_until
from tests.server.onemachine.test_prepare import SITES, SMALL, command


class Federation:
    """`python -m server federation` as a process, in an account whose home and temporary folder are empty."""

    def __init__(self, folder: Path, overrides: list[str]):
        self.layout = lay_out(folder / "fed", free_port(), overrides)
        self.home = folder / "home"
        self._log = folder / "told.txt"
        self._process: subprocess.Popen | None = None

    def start(self, *options: str) -> None:
        for name in ("home", "tmp"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        settings = [part for override in self.layout.overrides for part in ("--set", override)]
        arguments = ["--out", str(self.layout.out), "--port", str(self.layout.port), *options, *settings]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server", "federation", *arguments],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "HOME": str(self.home / "home"),
                    "TMPDIR": str(self.home / "tmp"),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def told(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str, seconds: float = 400) -> None:
        def said() -> bool:
            assert self._process.poll() is None, self.told
            return re.search(text, self.told) is not None

        wait_until(said, seconds, text)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 900) -> int:
        return self._process.wait(seconds)

    def kill_client(self, site: str) -> None:
        """kill -9 of `python -m client` of a site, as when memory runs out."""
        file = f"configs/{site}.yaml"
        for pid in marked(self.layout.out):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if name_of(pid) == "python -m client" and file in words:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def federation(tmp_path):
    made: list[Federation] = []

    def make(overrides=()) -> Federation:
        made.append(Federation(tmp_path, list(overrides)))
        return made[-1]

    yield make
    for each in made:
        if each._process is not None and each._process.poll() is None:
            each.signal(signal.SIGTERM)
            each.wait(60)


def assert_nothing_left(there: Federation) -> None:
    assert not marked(there.layout.out)
    assert port_is_free(there.layout.port)


def assert_nothing_half_written(there: Federation) -> None:
    """What was being written has gone, and what is there can be read."""
    out = there.layout.out
    assert not [path for path in out.rglob("*.tmp") if path.is_file()]
    for path in out.glob("*.json"):
        json.loads(path.read_text())
    for path in (out / "checkpoints").glob("*.safetensors"):
        assert read_tensors(path)[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_command_goes_from_nothing_to_the_report(federation):
    there = federation()
    there.start()
    assert there.wait() == 0, there.told
    assert_nothing_left(there)
    out = there.layout.out
    summary = json.loads((out / "summary.json").read_text())
    assert sorted(summary["sites"]) == list(SITES)
    assert summary["global"]["dice_mean"] > 0.6
    assert "<html" in (out / "report.html").read_text()[:200].lower()
    assert f"report: {(out / 'report.html').as_uri()}" in there.told
    assert "Traceback" not in there.told
    # all that was written is in its folder
    assert not [path for path in there.home.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_it_can_be_interrupted_killed_and_gone_on_with(federation):
    there = federation([*SMALL, "pretrain.rounds=2", "segment.rounds=3"])
    there.start()
    there.wait_for(r"pretrain +1:")
    running = set(marked(there.layout.out).values())
    assert {"python -m server.deployment.superlink", "python -m client", "flwr-serverapp"} <= running
    there.signal(signal.SIGINT)
    assert there.wait(90) == 130
    assert "interrupted: all processes are stopped; go on: python -m server federation --resume" in there.told
    assert_nothing_left(there)
    assert_nothing_half_written(there)

    there.start("--resume")
    there.wait_for("segment: from round")
    there.signal(signal.SIGKILL)
    there.wait()
    wait_until(lambda: not marked(there.layout.out), 60, "the end of what was started")

    there.start("--resume")
    there.wait_for("segment: from round")
    there.kill_client("site_b")
    assert there.wait() == 0, there.told
    assert "the client of site_b has ended (signal 9); the study goes on without it" in there.told
    assert_nothing_left(there)
    assert (there.layout.out / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_stops_it_like_ctrl_c(federation):
    there = federation(SMALL)
    there.start()
    there.wait_for("is connected")
    there.signal(signal.SIGTERM)
    assert there.wait(90) == 130
    assert_nothing_left(there)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_disk_that_fills_in_mid_study_is_named_and_the_study_goes_on_when_there_is_room(federation):
    there = federation([*SMALL, "pretrain.rounds=2", "segment.rounds=3"])
    try:
        with small_disk(there.layout.out, NEEDED_MB + 60) as filler:
            there.start()
            there.wait_for(r"pretrain +1:")
            fill(filler)
            assert there.wait(300) == 2, there.told
            assert_nothing_left(there)
            line = r"fed: the disk is full, with \d+ MB left \[FD602\]\n  -> free some, then: .*--resume"
            assert re.search(line, there.told) and "Traceback" not in there.told
            assert_nothing_half_written(there)
            filler.unlink()
            there.start("--resume")
            assert there.wait() == 0, there.told
            assert (there.layout.out / "report.html").is_file()
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_superlink_that_was_started_by_hand_is_not_deleted_under(tmp_path, capsys):
    layout = lay_out(tmp_path / "fed", free_port(), SMALL)
    coordinator = layout.coordinator.path
    coordinator.mkdir(parents=True)
    layout.lock.touch()
    shutil.copy(shutil.which("sleep"), tmp_path / "flower-superlink")
    superlink = subprocess.Popen([str(tmp_path / "flower-superlink"), "60"], cwd=coordinator)
    try:
        assert main(command(layout, "--force")) == 2
    finally:
        superlink.kill()
        superlink.wait()
    assert f"still run: {superlink.pid} (flower-superlink)" in capsys.readouterr().err
    assert coordinator.is_dir()


@pytest.mark.timeout(120)
def test_a_superlink_that_cannot_start_is_told_with_its_last_words(tmp_path, capsys):
    layout = lay_out(tmp_path / "fed", free_port(), SMALL)
    with opened(layout):
        prepare(layout, lambda text: None)
    script = layout.coordinator.path / "start.sh"  # one that was changed by hand is kept
    script.write_text("#!/bin/sh\necho the disk has gone\nexit 3\n")
    assert main(command(layout)) == 1
    told = capsys.readouterr().out
    assert "the SuperLink has ended (exit code 3)" in told
    assert "the disk has gone" in told
    assert not marked(layout.out)
