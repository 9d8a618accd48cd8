"""What a federation has started ends with it: left in order, interrupted, or killed, in whatever session it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.onemachine import warden
from server.onemachine.processes import Processes
from server.onemachine.system import marked
from server.onemachine.warden import end_all
from tests.deployment import ROOT, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

FAMILY = "setsid sleep 300 & exec sleep 300"
"""A process, and one that it has put into a session of its own."""
STUBBORN = "trap '' TERM; while :; do sleep 0.1; done"


def start_family(out: Path, processes: Processes) -> None:
    for name in ("the SuperLink", "site_a"):
        processes.start(name, ["sh", "-c", FAMILY], out / f"{name}.log")
    wait_until(lambda: len(marked(out)) == 4, 30, "four processes")


def test_leaving_the_block_ends_all_that_was_started(tmp_path):
    with Processes(tmp_path) as processes:
        start_family(tmp_path, processes)
    assert not marked(tmp_path)


def test_an_error_in_the_block_ends_all_that_was_started(tmp_path):
    with pytest.raises(ZeroDivisionError), Processes(tmp_path) as processes:
        start_family(tmp_path, processes)
        raise ZeroDivisionError
    assert not marked(tmp_path)


def test_a_killed_warden_is_replaced_by_its_master(tmp_path):
    with Processes(tmp_path) as processes:
        start_family(tmp_path, processes)
        processes._warden.kill()
    assert not marked(tmp_path)


def test_processes_are_told_to_keep_little_freed_memory_unless_the_account_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "5")
    with Processes(tmp_path) as processes:
        processes.start("one", ["sh", "-c", "env"], tmp_path / "log")
        wait_until(lambda: processes.ended("one") is not None, 30, "its end")
    told = (tmp_path / "log").read_text().splitlines()
    # the second without the third makes a step a quarter slower
    assert {"MALLOC_ARENA_MAX=5", "MALLOC_MMAP_THRESHOLD_=4194304", "MALLOC_TRIM_THRESHOLD_=67108864"} <= set(told)


MASTER = f"""
import sys, time
from pathlib import Path
from server.onemachine.processes import Processes
out = Path(sys.argv[1])
with Processes(out) as processes:
    for name in ("the SuperLink", "site_a"):
        processes.start(name, ["sh", "-c", {FAMILY!r}], out / "log")
    time.sleep(300)
"""


def test_all_ends_when_who_started_it_is_killed(tmp_path):
    master = subprocess.Popen([sys.executable, "-c", MASTER, str(tmp_path)], cwd=ROOT)
    wait_until(lambda: len(marked(tmp_path)) == 4, 60, "four processes")
    master.kill()
    master.wait()
    wait_until(lambda: not marked(tmp_path), 30, "their end")


def test_one_that_does_not_listen_is_killed(tmp_path, monkeypatch):
    for name in ("GOODBYE_S", "SUPERLINK_S", "SWEEP_S"):
        monkeypatch.setattr(warden, name, 1.0)
    environment = {**os.environ, "FEDDUSSS_FEDERATION": str(tmp_path)}
    stubborn = [subprocess.Popen(["sh", "-c", STUBBORN], env=environment, start_new_session=True) for _ in range(2)]
    time.sleep(0.5)
    end_all(tmp_path, [process.pid for process in stubborn], lambda: [process.poll() for process in stubborn])
    assert [process.wait(10) for process in stubborn] == [-signal.SIGKILL] * 2
    assert not marked(tmp_path)


def test_hospitals_end_before_the_superlink_to_which_they_say_goodbye(tmp_path):
    order = tmp_path / "order"
    with Processes(tmp_path) as processes:
        for name in ("superlink", "site_a", "site_b"):
            script = f"trap 'sleep 0.3; echo {name} >> {order}; exit 0' TERM; echo up; while :; do sleep 0.05; done"
            processes.start(name, ["sh", "-c", script], tmp_path / f"{name}.log")
        wait_until(lambda: all("up" in processes.last_words(n) for n in ("superlink", "site_a", "site_b")), 30, "them")
    assert order.read_text().split()[-1] == "superlink"
    assert len(order.read_text().split()) == 3


def test_processes_of_another_federation_are_left_alone(tmp_path):
    other = tmp_path / "fed-2"
    other.mkdir()
    bystander = subprocess.Popen(["sleep", "60"], env={**os.environ, "FEDDUSSS_FEDERATION": str(other)})
    with Processes(tmp_path / "fed") as processes:
        processes.start("the SuperLink", ["sleep", "60"], tmp_path / "log")
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
