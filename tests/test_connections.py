"""Nothing talks to the outside: not a whole study between real processes, seen with strace, and not a simulation."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.report.page import write_report
from server.runs.events import Reporter
from server.simulation.look import look
from server.simulation.simulate import simulate
from tests.server.conftest import make_study

_STRACE = shutil.which("strace")
_PEER = re.compile(r'sa_family=AF_INET6?\b.*?(?:inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)")')


def peers(trace: str) -> set[str]:
    """The addresses in lines of strace."""
    return {found[1] or found[2] for line in trace.splitlines() if (found := _PEER.search(line))}


def test_an_outside_address_is_seen():
    four = '7 connect(5, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("192.0.2.7")}, 16) = 0'
    six = '7 connect(5, {sa_family=AF_INET6, inet_pton(AF_INET6, "2001:db8::1", &sin6_addr)}, 28) = 0'
    assert peers(four) == {"192.0.2.7"} and peers(six) == {"2001:db8::1"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(_STRACE is None, reason="strace is not installed")
def test_client_and_superlink_connect_to_loopback_alone(tmp_path):
    trace = tmp_path / "trace"
    command = [_STRACE, "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg", "-s", "0", "-o", str(trace)]
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.server.whole_study", str(tmp_path / "study")],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "study" / "run" / "report.html").is_file()
    found = peers(trace.read_text(errors="replace"))
    assert "127.0.0.1" in found
    assert not {peer for peer in found if peer not in ("127.0.0.1", "::1", "0.0.0.0", "::")}


@pytest.mark.slow
def test_a_simulation_connects_to_nothing(no_network, tmp_path):
    study = make_study(pretrain__rounds=1, segment__rounds=1, method={"preset": "dusss"})
    simulate(study, tmp_path / "run", reporter=Reporter())
    write_report(tmp_path / "run")
    look(tmp_path / "run", say=lambda line: None)
    assert (tmp_path / "run" / "summary.json").is_file() and not no_network
